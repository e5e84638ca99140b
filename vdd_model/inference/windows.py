"""Windows in time: the steps of a clip, where a run begins that goes on from a frame, fading, and noise that does not notice the cuts."""
from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from ..options import DeblurOptions
from .scenes import Moment, Picture
from .tiles import ramp

WINDOWS_BACK = 3                         # windows before that of a frame which have a part in it, or are encoded together with one that has


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


def first_input_frame(first_frame: int, options: DeblurOptions, moments: Sequence[Moment] = (), back: int = WINDOWS_BACK) -> int:
    """The first frame that `stream` looks at in order to give frames from `first_frame` on exactly as an uninterrupted run does.

    A frame is blended from the window that holds it and the one before. That one's frames were encoded together with those before it, and a
    scene's last window can reach back by nearly one stride. Where a run looks for scenes or repeated frames, only the `moments` of an
    earlier one tell where its windows begin; without them it is 0. back: as for `windows_from`.
    """
    starts = windows_from(first_frame, options, moments, back)
    before = 1 if options.repeats == "auto" else 0             # by what has changed to a picture its repeats are known
    return max(0, starts[0].index - before) if starts else 0


def windows_from(first_frame: int, options: DeblurOptions, moments: Sequence[Moment], back: int = WINDOWS_BACK) -> list[Moment]:
    """Where the window that holds a frame and up to three before it in its scene begin, `back` where nobody looks at what frames show;
    [] where it is not known."""
    if options.scenes == options.repeats == "off":
        last = first_frame // options.stride
        return [Moment(k * options.stride, k * options.stride) for k in range(max(0, last - back), last + 1)]
    found = [moment for moment in moments if moment.index <= first_frame][-WINDOWS_BACK - 1:]
    first = max((i for i, moment in enumerate(found) if moment.number == 0), default=0 if len(found) > WINDOWS_BACK else len(found))
    return found[first:]


def seek(found: Iterator[Picture], first_frame: int, stride: int) -> tuple[list[Moment], Iterator[Picture]]:
    """What `windows_from` tells, found by looking at the clip's pictures; and these, from the first of those windows on."""
    starts: deque[Moment] = deque(maxlen=WINDOWS_BACK + 1)
    held: deque[Picture] = deque()
    for picture in found:
        if starts and picture.index > first_frame:
            return list(starts), chain(held, [picture], found)
        if picture.number == 0:
            starts.clear()
        if picture.number % stride == 0:
            starts.append(Moment(picture.index, picture.number))
        held.append(picture)
        while held[0].index < starts[0].index:
            held.popleft()
    return list(starts), iter(held)


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
