"""Cutting a clip into windows in time and tiles in space, putting the pieces together again, and noise that does not notice the cuts."""
from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor


@dataclass(frozen=True)
class Span:
    """[start, stop) along one axis; `lead` and `trail` positions of it are shared with the span before and after."""

    start: int
    stop: int
    lead: int = 0
    trail: int = 0

    @property
    def slice(self) -> slice:
        """[start, stop) as an index."""
        return slice(self.start, self.stop)

    def scaled(self, factor: int) -> Span:
        """The same piece at `factor` times the length."""
        return Span(self.start * factor, self.stop * factor, self.lead * factor, self.trail * factor)


@dataclass(frozen=True)
class Box:
    """A piece of a (..., F, h, w) tensor."""

    time: Span
    rows: Span
    columns: Span

    def of(self, x: Tensor) -> Tensor:
        """This piece of x, a view."""
        return x[..., self.time.slice, self.rows.slice, self.columns.slice]

    def scaled(self, factor: int) -> Box:
        """The same piece at `factor` times the height and width."""
        return Box(self.time, self.rows.scaled(factor), self.columns.scaled(factor))


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


def boxes(size: tuple[int, int, int], length: tuple[int, int, int], overlap: tuple[int, int, int], multiple: int = 1) -> list[Box]:
    """Boxes over (F, h, w); `multiple` holds for the rows and columns."""
    axes = [spans(n, k, o, m) for n, k, o, m in zip(size, length, overlap, (1, multiple, multiple))]
    return [Box(*spans_) for spans_ in product(*axes)]


def ramp(length: int) -> Tensor:
    """Weights rising smoothly from near 0 to near 1; ramp + its mirror image = 1."""
    return torch.sin((torch.arange(length) + 0.5) * (math.pi / 2 / max(length, 1))).square()


def span_weight(span: Span) -> Tensor:
    """1 in the middle of a span, falling towards what it shares with its neighbours; never 0."""
    weight = torch.ones(span.stop - span.start)
    if span.lead:
        weight[:span.lead] *= ramp(span.lead)
    if span.trail:
        weight[-span.trail:] *= ramp(span.trail).flip(0)
    return weight


def box_weight(box: Box, device: torch.device | str = "cpu") -> Tensor:
    """(F, h, w) blending weight of a box."""
    time, rows, columns = (span_weight(span).to(device, non_blocking=True) for span in (box.time, box.rows, box.columns))
    return time[:, None, None] * rows[:, None] * columns


def blend(pieces: Sequence[Box], compute: Callable[[Box], Tensor]) -> Tensor:
    """The weighted mean of compute(box), each (..., F, h, w) of its box, over all boxes, in its dtype; summed in float32."""
    if len(pieces) == 1:
        return compute(pieces[0])
    size = [max(span.stop for span in axis) for axis in zip(*((b.time, b.rows, b.columns) for b in pieces))]
    total = norm = None
    for box in pieces:
        part = compute(box)
        if total is None:
            total = torch.zeros(*part.shape[:-3], *size, device=part.device)
            norm = torch.zeros(*size, device=part.device)
        weight = box_weight(box, part.device)
        box.of(total).add_(part * weight)
        box.of(norm).add_(weight)
    return total.div_(norm).to(part.dtype)


def time_windows(total: int, window: int, overlap: int) -> list[tuple[int, int]]:
    """[start, stop) of the windows over `total` frames: every window - overlap frames, the last one moved back to be full.

    A window's place depends on the clip's length in the last one only, so a stream of unknown length finds the same ones.
    """
    check_window(window, overlap)
    starts, step = [0], window - overlap
    while starts[-1] + window < total:
        starts.append(starts[-1] + step)
    return [(max(0, min(start, total - window)), min(start + window, total)) for start in starts]


def check_window(window: int, overlap: int) -> None:
    """Raise ValueError unless each frame lies in at most two windows (0 <= overlap <= window / 2)."""
    if window < 1 or not 0 <= 2 * overlap <= window:
        raise ValueError(f"a window of {window} frames with an overlap of {overlap} cannot be used: "
                         "the window must be at least 1 frame and the overlap at most half of it")


def crossfade(previous: Tensor, following: Tensor) -> Tensor:
    """From `previous` to `following` along axis 2, both (B, C, F, h, w) of the same frames."""
    weight = ramp(previous.shape[2]).to(previous).view(-1, 1, 1)
    return torch.lerp(previous, following, weight)


def continue_clip(clip: Tensor, part: Tensor, start: int, at: int, shared: int) -> Tensor:
    """`clip`, the frames [0, at + shared), continued by `part`, the frames from `start` <= `at` on; both (B, C, F, h, w).

    Over the `shared` frames from `at` on, where the windows regularly meet, one fades into the other.
    """
    first, last = at - start, at - start + shared
    return torch.cat([clip[:, :, :at], crossfade(clip[:, :, at:at + shared], part[:, :, first:last]), part[:, :, last:]], dim=2)


def frame_noise(seed: int, frames: Sequence[int], channels: int, height: int, width: int, step: int = 0) -> Tensor:
    """Normal noise (1, channels, F, height, width), float32, for the frames with these absolute indices.

    A pixel's noise depends on (seed, its frame's index, step, its position) alone: each frame has a generator of its own that
    draws the whole latent plane, from which tiles are cut. step 0 is the start of sampling, i + 1 the noise added by step i.
    """
    planes = []
    for frame in frames:
        key = hashlib.blake2b(f"{seed}/{frame}/{step}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key, "little") >> 1)
        planes.append(torch.randn(channels, height, width, generator=generator))
    return torch.stack(planes, dim=1)[None]
