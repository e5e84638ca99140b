"""Cutting frames into tiles and windows into shorter ones, as memory allows, and putting the pieces together again."""
from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

WHOLE_FRAME_PIXELS = 1280 * 768      # larger frames are cut into tiles unless told otherwise
DEFAULT_TILE = 768
CHUNK_PIXELS = 4 * 256 * 256         # frames are decoded in chunks of about this many pixels
SMALLEST_TILE = 128
# What errors of a device's kernels say, whichever their class
NO_MEMORY = ("not enough memory", "out of memory", "DefaultCPUAllocator", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
T = TypeVar("T")


class Span(NamedTuple):
    """[start, stop) along one axis; `lead` and `trail` positions of it are shared with the span before and after."""

    start: int
    stop: int
    lead: int = 0
    trail: int = 0

    @property
    def slice(self) -> slice:
        """[start, stop) as an index."""
        return slice(self.start, self.stop)

    def shrunk(self, factor: int) -> Span:
        """The same piece of an axis that is so many times shorter."""
        return Span(*(n // factor for n in self))

    def weight(self) -> Tensor:
        """1 in the middle, falling towards what is shared with the neighbours; never 0."""
        weight = torch.ones(self.stop - self.start)
        if self.lead:
            weight[:self.lead] *= ramp(self.lead)
        if self.trail:
            weight[-self.trail:] *= ramp(self.trail).flip(0)
        return weight


class Box(NamedTuple):
    """A piece of a (..., F, h, w) tensor."""

    time: Span
    rows: Span
    columns: Span

    def of(self, x: Tensor) -> Tensor:
        """This piece of x, a view."""
        return x[..., self.time.slice, self.rows.slice, self.columns.slice]

    def shrunk(self, factor: int) -> Box:
        """The same piece of a tensor that is so many times less high and wide."""
        return Box(self.time, self.rows.shrunk(factor), self.columns.shrunk(factor))

    def weight(self, device: torch.device | str = "cpu") -> Tensor:
        """For blending, (F, h, w)."""
        time, rows, columns = (span.weight().to(device, non_blocking=True) for span in self)
        return time[:, None, None] * rows[:, None] * columns


def spans(size: int, length: int, overlap: int, multiple: int = 1) -> list[Span]:
    """Spans of one length, at most `length`, that cover [0, size), evenly spread, neighbours sharing at least `overlap` positions.

    There are as few of them as can be, and then they are as short as can be. size, length and overlap are multiples of
    `multiple`, and so is every start. One span [0, size) where length >= size.
    """
    if length >= size:
        return [Span(0, size)]
    if overlap >= length:
        raise ValueError(f"an overlap of {overlap} leaves nothing of pieces of {length}")
    count = math.ceil((size - overlap) / (length - overlap))
    length = math.ceil((size + (count - 1) * overlap) / count / multiple) * multiple
    starts = [i * (size - length) // (count - 1) // multiple * multiple for i in range(count)]
    shared = [0, *(a + length - b for a, b in zip(starts, starts[1:])), 0]
    return [Span(start, start + length, shared[i], shared[i + 1]) for i, start in enumerate(starts)]


def ramp(length: int) -> Tensor:
    """Weights rising smoothly from near 0 to near 1; ramp + its mirror image = 1."""
    return torch.sin((torch.arange(length) + 0.5) * (math.pi / 2 / max(length, 1))).square()


def blend(pieces: Sequence[Box], compute: Callable[[Box], Tensor], *, as_frames: bool = False) -> Tensor:
    """The weighted mean of compute(box), each (..., F, h, w) of its box, over all boxes, in its dtype; summed in float32.

    as_frames: in memory it lies as (F, h, w, ...), which saves who wants it so a copy.
    """
    if len(pieces) == 1:
        return compute(pieces[0])
    size = [max(span.stop for span in axis) for axis in zip(*pieces)]
    cut = any(box.time != pieces[0].time for box in pieces)             # else one frame's weights are all frames'
    total = norm = None
    for box in pieces:
        part, place = compute(box), box if cut else box._replace(time=Span(0, 1))
        if total is None:
            lead = part.shape[:-3]
            total = torch.zeros(*size, *lead, device=part.device) if as_frames else torch.zeros(*lead, *size, device=part.device)
            total = total.permute(*range(3, total.ndim), 0, 1, 2) if as_frames else total
            norm = torch.zeros(size[0] if cut else 1, *size[1:], device=part.device)
        weight, dtype = place.weight(part.device), part.dtype
        box.of(total).add_(part * weight)
        place.of(norm).add_(weight)
        del part                                                        # before the next is made
    return total.div_(norm).to(dtype)


@dataclass(frozen=True)
class Tiling:
    """How much is computed at once. Tiles are in pixels, multiples of the model's divisor; 0 means all."""

    tile: int = 0                    # side of a square tile; 0: whole frames
    overlap: int = 0                 # pixels that neighbouring tiles share at least
    frames: int = 0                  # frames that the denoiser sees at once; 0: the whole window
    divisor: int = 1                 # the model's

    def boxes(self, size: tuple[int, int, int], *, time: bool = False) -> list[Box]:
        """Boxes over (F, H, W), in pixels; cut in time only when asked for."""
        frames, tile = self.frames if time and self.frames else size[0], self.tile or max(size[1:])
        shared = frames // 4 if frames < size[0] else 0, self.overlap, self.overlap
        return [Box(*axes) for axes in product(*map(spans, size, (frames, tile, tile), shared, (1, self.divisor, self.divisor)))]

    def chunk(self, height: int, width: int) -> int:
        """How many frames of this size (pixels) the autoencoder works on at once."""
        count = max(1, CHUNK_PIXELS // (height * width))
        return min(count, self.frames) if self.frames else count

    def smaller(self, frames: int, height: int, width: int) -> Tiling | None:
        """The next smaller tiling for a window of this size, None when there is none: first smaller tiles, then fewer frames."""
        side = min(self.tile or max(height, width), max(height, width))
        if side > SMALLEST_TILE:
            return replace(make_tiling(max(side // 2, SMALLEST_TILE), None, height, width, self.divisor), frames=self.frames)
        count = min(self.frames or frames, frames)
        return replace(self, frames=count // 2) if count > 1 else None

    def __str__(self) -> str:
        tile = f"tiles of {self.tile} x {self.tile} pixels" if self.tile else "whole frames"
        return f"{tile}, {self.frames} frames at a time" if self.frames else tile


WHOLE = Tiling()


def make_tiling(tile: int | None, overlap: int | None, height: int, width: int, divisor: int) -> Tiling:
    """The tiling for frames of this size (pixels). tile None: chosen by size; 0: never; else the side of a tile, rounded up."""
    if tile is None:
        tile = 0 if height * width <= WHOLE_FRAME_PIXELS else DEFAULT_TILE
    tile = math.ceil(tile / divisor) * divisor
    if tile == 0 or tile >= max(height, width):
        return Tiling(divisor=divisor)
    if tile == divisor:              # nothing smaller can overlap with a neighbour
        tile = 2 * divisor
    overlap = max(64, tile // 12) if overlap is None else overlap       # as much again changes frames by 63 dB
    return Tiling(tile, min(math.ceil(overlap / divisor), tile // divisor // 2) * divisor, divisor=divisor)


def lacks_memory(error: Exception) -> bool:
    """Whether it says that memory ran out, on any device."""
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or any(words in str(error) for words in NO_MEMORY)


def until_it_fits(work: Callable[[], T], shrink: Callable[[], None]) -> T:
    """work(), again behind shrink(), which may raise, for as long as memory runs out, on any device."""
    while True:
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if not lacks_memory(error):
                raise
        shrink()
        gc.collect()                                     # outside of the `except` block, whose traceback holds tensors
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
