"""Training: data, synthetic blur, losses, stages, the loop and the evaluation (`python -m train CONFIG`)."""
import argparse
import functools
import os
import signal
import sys
from collections.abc import Callable

from vdd_model.errors import UserError


def exit_code(work: Callable[[], int | object], failed: int = 1, again: str = "the same command goes on where it stopped") -> int:
    """Do a command's work: the number that it returns, or 0. What stops it becomes one sentence and `failed`, or 130; `again`: what to do
    behind an interruption."""
    if signal.getsignal(signal.SIGINT) is _interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        found = work()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return failed
    except OSError as error:                                 # a full disk, a folder that is not there
        print(f"error: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return failed
    except KeyboardInterrupt:
        print(f"interrupted; {again}", file=sys.stderr)
        return 130
    return found if isinstance(found, int) else 0


def command(*how):
    """For a command line, a function of its arguments (None: the program's): it returns an exit status, as `exit_code` has it."""
    return lambda main: functools.wraps(main)(lambda arguments=None: exit_code(lambda: main(arguments), *how))


def _interrupted(*_) -> None:
    """Ctrl-C while a command's modules, seconds of them, are imported: the compiled ones end with a dump when it is raised in them."""
    print("interrupted", file=sys.stderr, flush=True)
    os._exit(130)


# "-m": as Python has it while it looks for the module; a shell may have said that SIGINT is not for this process
if sys.argv[0] == "-m" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _interrupted)


def at_least(least: float, kind: type = int) -> Callable[[str], float]:
    """argparse's type of numbers of this kind from `least` on."""
    def number(text: str) -> float:
        """Raises what argparse makes a sentence of."""
        if not kind(text) >= least:                          # nan is not
            raise argparse.ArgumentTypeError(f"{text} is below {least}")
        return kind(text)
    return number
