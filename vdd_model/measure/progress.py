"""One line of progress: frames done, frames per second, time left."""
from __future__ import annotations

import sys
import time
from typing import TextIO


def clock(seconds: float) -> str:
    """123 -> 2:03, 3723 -> 1:02:03."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Progress:
    """Rewrites one line on a terminal; in a log file adds a line every `log_every` seconds."""

    def __init__(self, label: str, total: int, done: int = 0, *, stream: TextIO | None = None, quiet: bool = False, log_every: float = 30):
        self.label, self.total, self.first = label, total, done
        self.stream = stream or sys.stderr
        self.terminal = self.stream.isatty()
        self.quiet, self.every = quiet, 0.2 if self.terminal else log_every
        self.started = self.shown = time.monotonic()
        if not quiet and self.terminal:
            self._show(done)

    def _show(self, done: int) -> None:
        passed = time.monotonic() - self.started
        speed = (done - self.first) / passed if passed > 0 else 0.0
        text = f"{self.label}: {done}/{max(self.total, done)} frames"
        if speed:
            text += f", {speed:.2f} frames/s, {clock(max(0, self.total - done) / speed)} left"
        self.stream.write(f"\r{text}\x1b[K" if self.terminal else text + "\n")
        self.stream.flush()

    def update(self, done: int) -> None:
        """`done` frames are finished."""
        now = time.monotonic()
        if not self.quiet and now - self.shown >= self.every:
            self.shown = now
            self._show(done)

    def close(self) -> None:
        """Clear the line."""
        if not self.quiet and self.terminal:
            self.stream.write("\r\x1b[K")
            self.stream.flush()
