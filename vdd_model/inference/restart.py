"""Where a run begins that gives a clip from some frame on, as an interrupted one does."""
from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain

from ..options import DeblurOptions
from .scenes import Moment, Picture

WINDOWS_BACK = 3                         # windows before that of a frame which have a part in it, or are encoded together with one that has


def first_input_frame(first_frame: int, options: DeblurOptions, moments: Sequence[Moment] = (), back: int = WINDOWS_BACK) -> int:
    """The first frame that `stream` looks at in order to give frames from `first_frame` on exactly as an uninterrupted run does.

    A frame is blended from the window that holds it and the one before. That one's frames were encoded together with those before it, and a
    scene's last window can reach back by nearly one stride. Where a run looks for scenes or repeated frames, only the `moments` of an
    earlier one tell where its windows begin; without them it is 0.
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
