"""One line of progress: frames done, frames per second, time left."""
from __future__ import annotations

import sys

from tqdm import tqdm


class FrameBar(tqdm):
    """Rewrites one line on a terminal; in a log file adds to it every half minute. `to(done)`: so many frames are finished, and parts of
    frames."""

    def __init__(self, label: str, total: int, done: int = 0, *, quiet: bool = False):
        terminal = sys.stderr.isatty()
        super().__init__(total=total, initial=done, desc=label, unit=" frames", disable=quiet, leave=False, miniters=0, dynamic_ncols=True,
                         mininterval=0.2 if terminal else 30, delay=0 if terminal else 30,
                         bar_format="{desc}: {n:.1f}/{total} frames |{bar}| {rate_fmt}, {remaining} left")

    def to(self, done: float) -> None:
        """See the class."""
        self.update(max(0.0, done - self.n))
