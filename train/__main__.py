"""`python -m train CONFIG` or `accelerate launch -m train CONFIG`."""
from __future__ import annotations

import argparse
import dataclasses
import sys

from . import command, minutes
from .config import load, scale_minutes


@command(2)
def main(arguments: list[str] | None = None) -> None:
    """The command line. Returns the exit status: 0 finished or stopped in time, 2 for a user's error, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m train", description="Train a model: the stages of CONFIG, one after the other.")
    parser.add_argument("config", help="a YAML file, such as configs/small.yaml")
    parser.add_argument("--root", help="folder of the data; the configuration's folders are relative to it")
    parser.add_argument("--out", help="folder of the run: states, log, panels, checkpoint")
    parser.add_argument("--init", help="checkpoint to start from")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out (begin it when there is none)")
    parser.add_argument("--minutes", type=minutes, help="stop cleanly after so many minutes of this call, to go on with --resume")
    parser.add_argument("--total-minutes", type=minutes, help="scale the stages' minutes so that they sum to this")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one key, e.g. stages.0.lr=1e-4")
    options = parser.parse_args(arguments)
    config = load(options.config, options.set)
    config = dataclasses.replace(config, **{key: getattr(options, key) for key in ("root", "out", "init") if getattr(options, key)})
    if options.total_minutes is not None:
        config = scale_minutes(config, options.total_minutes)
    from .loop import run  # takes seconds: a mistake in the configuration is told at once

    run(config, resume=options.resume, minutes=options.minutes)


if __name__ == "__main__":
    sys.exit(main())
