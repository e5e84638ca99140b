"""A video file's frames, one after the other (`VideoReader`)."""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import torch

from .clip import Frame, MediaError, VideoClip
from .container import open_container, reason, video_stream
from .decoder import Decoder
from .pixel_formats import RGB, UNSPECIFIED, ColorTags, beyond_limits, complete_tags, layout, to_rgb


class VideoReader:
    """Iterate over a clip's frames, upright, as `Frame`s. After the last one `lost` and `notes` say what could not be read.

    `start`: frames before this index are decoded but neither converted nor yielded; `passing` is called for each of them.
    """

    def __init__(self, clip: VideoClip, start: int = 0, passing: Callable[[], None] = lambda: None):
        self.clip, self.start, self.passing = clip, start, passing
        self.lost = 0
        self.notes: list[str] = []

    def __iter__(self) -> Iterator[Frame]:
        clip, index, errors, interlaced = self.clip, 0, 0, 0
        beyond: list[int] = []                                 # frames with values outside limited range
        previous, changed, one = None, "", max(1, round(1 / (clip.rate * clip.time_base)))
        with contextlib.closing(open_container(clip.path)) as container:
            stream = video_stream(container, clip.path)
            tick = stream.time_base or Fraction(1, 1000)
            decoder = Decoder(container, stream, clip)
            for item in decoder:
                if isinstance(item, Exception):
                    errors += 1
                    if not any(reason(item) in note for note in self.notes):
                        self.notes.append(f"a part after frame {index} could not be decoded ({reason(item)})")
                    continue
                if (item.width, item.height) != clip.coded_size:
                    before, after = ("x".join(map(str, size[::-1] if clip.quarter_turns % 2 else size))
                                     for size in (clip.coded_size, (item.width, item.height)))
                    changed = f"the frame size changes from {before} to {after} at frame {index}; the rest was left out"
                    break
                # its place in time
                pts = self._time(item.pts, tick, index)
                if previous is not None and pts <= previous:
                    pts = previous + 1
                previous = pts
                interlaced += bool(getattr(item, "interlaced_frame", False))
                if beyond_limits(item, tags_of(item, clip)):
                    beyond.append(index)
                if index >= self.start:
                    duration = getattr(item, "duration", 0) or 0
                    if clip.constant_rate:                     # the last frame may be held for longer: nothing else tells its end
                        held = round(duration * tick * clip.rate) if index == clip.num_frames - 1 and not clip.untimed else 1
                        duration = one * max(1, held)
                    rgb, alpha = upright_rgb(item, clip)
                    yield Frame(torch.from_numpy(rgb), None if alpha is None else torch.from_numpy(alpha), pts, int(duration) or one, index)
                    del rgb, alpha
                else:
                    self.passing()
                index += 1
        # what went wrong
        if changed:
            self.notes = [changed]
        # only where something went wrong: a few packets without a picture of their own (fields, hidden frames) are no loss
        self.lost = max(0, clip.num_frames - index) if errors or changed or decoder.damaged else 0
        if errors and not clip.breaks_off:                     # a demuxer that fails at the end has not told of what it holds back
            self.lost = max(1, self.lost)
        if decoder.damaged:
            self.notes.append(f"{decoder.damaged} frame{'s are' if decoder.damaged > 1 else ' is'} damaged")
            self.lost = max(self.lost, decoder.damaged)
        if not self.lost and (headless := min(clip.headless, clip.num_frames - index)) > 0:
            self.notes.append(f"its first {headless} frame{'s stand' if headless > 1 else ' stands'} before any key frame and cannot be "
                              "decoded")
            self.lost = headless
        if clip.breaks_off:                                    # beside what the file holds
            self.notes.insert(0, clip.breaks_off)
            self.lost += clip.missing
        # what is said of the rest
        if interlaced and not clip.interlaced:
            self.notes.append(f"{interlaced} of its frames are interlaced, though not the first; deinterlace it first for a better result")
        if beyond:
            self.notes.append(f"{len(beyond)} frame{'s' if len(beyond) > 1 else ''} (the first is {beyond[0]}) held values outside limited "
                              "range (above white or below black), which were cut off")
        if index == 0:
            raise MediaError(f"{clip.path} holds a video stream but not one frame that can be decoded")

    def _time(self, pts: int | None, tick: Fraction, index: int) -> int:
        clip = self.clip
        start = clip.origin - clip.shift
        if clip.constant_rate:
            number = index if pts is None or clip.untimed else max(0, round((pts * tick - clip.origin) * clip.rate))
            return round((start + number / clip.rate) / clip.time_base)
        if pts is None:
            return round((start + index / clip.rate) / clip.time_base)
        return round((pts * tick - clip.shift) / clip.time_base)


def tags_of(picture: av.VideoFrame, clip: VideoClip) -> ColorTags:
    """A decoded picture's colors: the clip's, and what it says of itself where that is not what the first one said."""
    matrix, value_range, tags = int(picture.colorspace), int(picture.color_range), clip.color
    if (matrix, value_range) != clip.first_says:
        tags = replace(tags, matrix=matrix if matrix not in (UNSPECIFIED, RGB) else tags.matrix,
                       full_range={1: False, 2: True}.get(value_range, tags.full_range))
    return complete_tags(tags, layout(picture.format.name).kind, picture.height, picture.width)


def upright_rgb(picture: av.VideoFrame, clip: VideoClip) -> tuple[np.ndarray, np.ndarray | None]:
    """A decoded picture as RGB (H, W, 3) and, where the clip has it, alpha (H, W), float32 in [0, 1], cropped and upright."""
    rgb, alpha = to_rgb(picture, tags_of(picture, clip), chroma=clip.chroma)
    top, bottom, left, right = clip.crop
    rgb, alpha = (None if x is None else upright(x[top: x.shape[0] - bottom, left: x.shape[1] - right], clip.quarter_turns, clip.mirrored)
                  for x in (rgb, alpha if clip.has_alpha else None))
    return rgb, alpha


def upright(picture: np.ndarray, turns: int, mirrored: bool) -> np.ndarray:
    """A decoded picture (H, W, ...) as it is to be shown: turned counter-clockwise by quarters, then mirrored."""
    turned = np.rot90(picture, turns)
    return np.ascontiguousarray(turned[:, ::-1] if mirrored else turned)
