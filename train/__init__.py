"""Training: data, synthetic blur, losses, stages, the loop and the evaluation (`python -m train CONFIG`)."""
import argparse
import functools
import math
import sys
from collections.abc import Callable

from vdd_model.errors import UserError


def exit_code(work: Callable[[], int | object], failed: int = 1, again: str = "the same command goes on where it stopped") -> int:
    """Do a command's work: the number that it returns, or 0. What stops it becomes one sentence and `failed`, or 130; `again`: what to do
    behind an interruption."""
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


def minutes(text: str) -> float:
    """argparse's type of durations."""
    if math.isnan(float(text)):
        raise argparse.ArgumentTypeError("nan is no time")
    return float(text)


def at_least(least: int) -> Callable[[str], int]:
    """argparse's type of whole numbers from `least` on."""
    def number(text: str) -> int:
        """One of them."""
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is below {least}")
        return int(text)
    return number
