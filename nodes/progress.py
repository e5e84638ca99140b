"""The host's progress bar, moved by parts of a frame; it passes Cancel on."""
from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management as mm
import comfy.utils
from torch import nn

from ..vdd_model.measure.report import to_image
from ..vdd_model.networks.autoencoder import ResBlock
from ..vdd_model.networks.fidelity import GatedBlock

PARTS = 100                   # of a frame: what the bar counts
PREVIEW_SIZE = 512
PREVIEW_SECONDS = 0.25        # between two previews at least


class Bar:
    """A bar over `total` frames. Each `tick` says that one of the pieces of work on the frames under way is about to begin."""

    def __init__(self, total: int):
        self.bar, self.total = comfy.utils.ProgressBar(total * PARTS), total
        self.done, self.shown, self.blocks, self.per_frame = 0, 0.0, 1, 0.0
        self.begin(0, 1)

    @contextmanager
    def watch(self, network: nn.Module) -> Iterator[None]:
        """Tick before each block of an autoencoder too: one piece may be seconds of work."""
        blocks = [part for part in network.modules() if isinstance(part, (ResBlock, GatedBlock))]
        hooks, self.blocks = [block.register_forward_pre_hook(lambda *_: self.tick()) for block in blocks], len(blocks) + 1
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def begin(self, frames: int, pieces: int) -> None:
        """So many frames, done in so many pieces, come next."""
        self.frames, self.count = frames, 0
        self.pieces = self.per_frame * frames or pieces * self.blocks         # a guess, until the first are done

    def tick(self) -> None:
        """Raises what the host stops a run with, once the user has asked for it."""
        self.move(self.done + self.frames * min(self.count / self.pieces, 1.0))
        self.count += 1

    def end(self, picture=None) -> None:
        """The frames are done; a picture (H, W, 3) in [0, 1] of them is shown."""
        self.done, self.per_frame = self.done + self.frames, self.count / max(self.frames, 1) or self.per_frame
        self.frames = 0
        self.move(self.done, picture)

    def wants_picture(self) -> bool:
        """Whether it is time for another preview."""
        return time.monotonic() - self.shown >= PREVIEW_SECONDS

    def move(self, position: float, picture=None, total: int | None = None) -> None:
        """Go to this place, in frames."""
        mm.throw_exception_if_processing_interrupted()
        preview = None
        if picture is not None and self.wants_picture():
            preview, self.shown = ("JPEG", to_image(picture), PREVIEW_SIZE), time.monotonic()
        self.bar.update_absolute(round(position * PARTS), (total or self.total) * PARTS, preview)
