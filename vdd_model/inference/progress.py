"""Where a run stands (`Progress`), and how far the work on one window is (`Meter`)."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

# Work per frame, to weigh the stages of a window against each other: measured with the shipped model, at 16 x 256 x 256 on a CPU
ENCODE, CALL, DECODE = 1.0, 5.0, 6.0
PICTURE = ENCODE + DECODE + ENCODE       # of `encode_pictures`: the features, the picture, its latents


@dataclass(frozen=True)
class Progress:
    """Where a run stands; given to the `progress` callback between pieces of work, many times a window."""

    stage: str                           # "encode", "denoise" or "decode"
    frames_done: int                     # absolute: frames that are finished, those before `first_frame` included
    total: int | None                    # frames of the clip, where known
    fraction: float = 0.0                # how much of the work on the current window is done, all stages together
    position: float = 0.0                # frames_done and the part done of those under way: never falls, what a bar shows
    latents: Tensor | None = None        # behind each step of the denoiser its x0 (1, 4, F, h, w) of the window, scaled; for a preview


class Meter:
    """Counts the pieces of work on one window after another and tells `progress` (None: nobody asks)."""

    def __init__(self, progress: Callable[[Progress], None] | None, first_frame: int, total: int | None):
        self.progress, self.total = progress, total
        self.done, self.position = first_frame, float(first_frame)

    def window(self, frames: int, work: float) -> None:
        """A window begins that finishes so many frames, with so much work."""
        self.begun, self.frames, self.work, self.finished = self.done, frames, work, 0.0

    def stage(self, name: str, pieces: int, work: float) -> None:
        """So many pieces come next, so much of the window's work; `end` says that they are done."""
        self.name, self.pieces, self.count, self.share = name, max(pieces, 1), 0, work

    def end(self) -> None:
        """The stage is done."""
        self.finished += self.share

    def tick(self, latents: Tensor | None = None, counted: bool = True) -> None:
        """Report what was done before the next piece. With latents, or not `counted`, it is within a piece."""
        fraction = (self.finished + self.share * min(self.count / self.pieces, 1.0)) / self.work
        self.count += counted and latents is None
        self.position = max(self.position, self.begun + self.frames * fraction, float(self.done))
        if self.progress is not None:
            self.progress(Progress(self.name, self.done, self.total, fraction, self.position, latents))
