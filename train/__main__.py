"""`python -m train CONFIG` or `accelerate launch -m train CONFIG`."""
from __future__ import annotations

import argparse
import sys

from . import at_least, command
from .config import add_run_flags, from_run_flags, scale_minutes


@command(2, "go on with --resume")
def main(arguments: list[str] | None = None) -> None:
    """The command line. Returns the exit status: 0 finished or stopped in time, 2 for a user's error, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m train", description="Train a model: the stages of CONFIG, one after the other.")
    add_run_flags(parser)
    parser.add_argument("--minutes", type=at_least(0, float), metavar="MINUTES", help="stop this call cleanly then; --resume goes on")
    options = parser.parse_args(arguments)
    config = from_run_flags(options)
    if options.total_minutes is not None:
        config = scale_minutes(config, options.total_minutes)
    from .loop import run  # takes seconds: a mistake in the configuration is told at once

    run(config, resume=options.resume, minutes=options.minutes)


if __name__ == "__main__":
    sys.exit(main())
