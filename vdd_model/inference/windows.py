"""Cutting a clip into windows in time and tiles in space, putting the pieces together again, and noise that does not notice the cuts."""
from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor


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
    return [Box(*axes) for axes in product(*map(spans, size, length, overlap, (1, multiple, multiple)))]


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
    time, rows, columns = (span_weight(span).to(device, non_blocking=True) for span in box)
    return time[:, None, None] * rows[:, None] * columns


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
        weight, dtype = box_weight(place, part.device), part.dtype
        box.of(total).add_(part * weight)
        place.of(norm).add_(weight)
        del part                                                        # before the next is made
    return total.div_(norm).to(dtype)


class Step(NamedTuple):
    """What is done at one place of a clip, in ranges of frame numbers."""

    read: range          # frames that are new, to be encoded
    window: range        # frames that are sampled together; the clip's last ones reach back until they are a full window
    shared: range        # frames over which the window before fades into this one, in their regular place
    ready: range         # frames that are finished with this window, to be decoded
    last: bool


def window_steps(reach: Callable[[int], int], window: int, overlap: int, first: int = 0) -> Iterator[Step]:
    """The windows of a clip of unknown length in order, one every window - overlap frames, from number `first` on; the last one moved back
    to be full. A step in the middle is the same whether or not those before it were asked for.

    reach(n) -> how many frames the clip has, n where it has more: it is asked for one frame more than a window needs, which tells the last
    window and gives its last frame a neighbour to be decoded beside. Raises ValueError unless each frame lies in at most two windows
    (0 <= overlap <= window / 2).
    """
    if window < 1 or not 0 <= 2 * overlap <= window:
        raise ValueError(f"a window of {window} frames with an overlap of {overlap} cannot be used: "
                         "the window must be at least 1 frame and the overlap at most half of it")
    stride, further = window - overlap, 0 if overlap else 1
    begin = first * stride
    seen = begin + overlap + further if first else 0
    while (end := reach(begin + window + 1)) > begin:
        last, stop = end <= begin + window, min(begin + window, end)
        start = max(0, stop - window) if last else begin
        ahead = max(seen, min(stop + further, end))
        yield Step(range(seen, ahead), range(start, stop), range(begin, begin + overlap if begin else begin),
                   range(begin, stop if last else begin + stride), last)
        if last:
            return
        begin, seen = begin + stride, ahead


def fade_in(new: Tensor, step: Step, old: Tensor | None, old_window: range) -> Tensor:
    """`new` (B, C, F, h, w), the frames of step.window, where those of step.shared fade in from `old`, the frames of the window before
    (None: there is none). It is changed in place."""
    if old is not None and step.shared:
        part, before = (slice(step.shared.start - frames.start, step.shared.stop - frames.start) for frames in (step.window, old_window))
        new[:, :, part] = torch.lerp(old[:, :, before], new[:, :, part], ramp(len(step.shared)).to(new)[:, None, None])
    return new


def frame_noise(seed: int, frames: Sequence[int], channels: int, height: int, width: int, step: int = 0) -> Tensor:
    """Normal noise (1, channels, F, height, width), float32, for the frames with these absolute indices.

    A pixel's noise depends on (seed, its frame's index, step, its position) alone: each frame has a generator of its own that
    draws the whole latent plane, from which tiles are cut. step 0 is the start of sampling, i + 1 the noise added by step i.
    """
    keys = (hashlib.blake2b(f"{seed}/{frame}/{step}".encode(), digest_size=8).digest() for frame in frames)
    generators = (torch.Generator().manual_seed(int.from_bytes(key, "little") >> 1) for key in keys)
    return torch.stack([torch.randn(channels, height, width, generator=generator) for generator in generators], dim=1)[None]
