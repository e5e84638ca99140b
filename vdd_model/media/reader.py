"""A video file's frames, one after the other (`VideoReader`)."""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from fractions import Fraction

import av
import numpy as np
import torch

from .clip import Clip, Frame, MediaError
from .container import Joins, decoder_of, open_container, reason, video_stream
from .pixel_formats import to_rgb


class VideoReader:
    """Iterate over a clip's frames, upright, as `Frame`s. After the last one `lost` and `notes` say what could not be read.

    `start`: frames before this index are decoded but neither converted nor yielded; `passing` is called for each of them.
    """

    def __init__(self, clip: Clip, start: int = 0, passing: Callable[[], None] = lambda: None):
        self.clip, self.start, self.passing = clip, start, passing
        self.lost = 0
        self.notes: list[str] = []

    def __iter__(self) -> Iterator[Frame]:
        clip, index, damaged, errors = self.clip, 0, 0, 0
        previous = None
        changed = ""
        tick = None
        with contextlib.closing(open_container(clip.path)) as container:
            stream = video_stream(container, clip.path)
            # not frame by frame: several frames are then under way at a damaged end, where PyAV gives up all that follow the first error
            stream.thread_type = "SLICE"
            tick = stream.time_base or Fraction(1, 1000)
            for item in _decode(container, stream, Joins(container, clip.joins)):
                if isinstance(item, Exception):
                    errors += 1
                    if not any(reason(item) in note for note in self.notes):
                        self.notes.append(f"a part after frame {index} could not be decoded ({reason(item)})")
                    continue
                size = (item.height, item.width) if clip.quarter_turns % 2 else (item.width, item.height)
                if size != (clip.width, clip.height):
                    changed = (f"the frame size changes from {clip.width}x{clip.height} to {size[0]}x{size[1]} at frame {index}; "
                               "the rest was left out")
                    break
                pts = self._time(item.pts, tick, index)
                if previous is not None and pts <= previous:
                    pts = previous + 1
                previous = pts
                damaged += bool(getattr(item, "is_corrupt", False))
                if index >= self.start:
                    duration = getattr(item, "duration", 0) or 0
                    if clip.constant_rate:                     # the last frame may be held for longer: nothing else tells its end
                        held = round(duration * tick * clip.rate) if index == clip.num_frames - 1 and not clip.untimed else 1
                        duration = self._one_frame() * max(1, held)
                    yield self._convert(item, pts, int(duration) or self._one_frame(), index)
                else:
                    self.passing()
                index += 1
        if changed:
            self.notes = [changed]
        # only where something went wrong: a few packets without a picture of their own (fields, hidden frames) are no loss
        self.lost = max(0, clip.num_frames - index) if errors or changed or damaged else 0
        if damaged:
            self.notes.append(f"{damaged} frame{'s are' if damaged > 1 else ' is'} damaged")
            self.lost = max(self.lost, damaged)
        if clip.breaks_off:                                    # beside what the file holds
            self.notes.insert(0, clip.breaks_off)
            self.lost += clip.missing
        if index == 0:
            raise MediaError(f"{clip.path} holds a video stream but not one frame that can be decoded")

    def _one_frame(self) -> int:
        return max(1, round(1 / (self.clip.rate * self.clip.time_base)))

    def _time(self, pts: int | None, tick: Fraction, index: int) -> int:
        clip = self.clip
        start = clip.origin - clip.shift
        if clip.constant_rate:
            number = index if pts is None or clip.untimed else max(0, round((pts * tick - clip.origin) * clip.rate))
            return round((start + number / clip.rate) / clip.time_base)
        if pts is None:
            return round((start + index / clip.rate) / clip.time_base)
        return round((pts * tick - clip.shift) / clip.time_base)

    def _convert(self, picture: av.VideoFrame, pts: int, duration: int, index: int) -> Frame:
        rgb, alpha = upright_rgb(picture, self.clip)
        return Frame(torch.from_numpy(rgb), None if alpha is None else torch.from_numpy(alpha), pts, duration, index)


def upright_rgb(picture: av.VideoFrame, clip: Clip) -> tuple[np.ndarray, np.ndarray | None]:
    """A decoded picture as RGB (H, W, 3) and, where the clip has it, alpha (H, W), float32 in [0, 1], upright."""
    rgb, alpha = to_rgb(picture, clip.color, centred_chroma=clip.codec in ("mjpeg", "webp"))
    if clip.quarter_turns or clip.mirrored:
        rgb, alpha = (x if x is None else upright(x, clip) for x in (rgb, alpha))
    return rgb, alpha


def upright(picture: np.ndarray, clip: Clip) -> np.ndarray:
    """A decoded picture (H, W, ...) as the clip is to be shown: turned and mirrored."""
    turned = np.rot90(picture, clip.quarter_turns)
    return np.ascontiguousarray(turned[:, ::-1] if clip.mirrored else turned)


def _decode(container, stream, joins: Joins) -> Iterator[av.VideoFrame | Exception]:
    """Frames in order; an error is yielded in its place and decoding goes on behind it."""
    packets, decoder = container.demux(stream), decoder_of(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.FFmpegError as error:
            yield error
            packet = None                                      # the file ends here: flush the decoder
        else:
            joins.correct(packet)
        try:
            yield from decoder.decode(packet if packet is not None and packet.size else None)
        except av.EOFError:
            pass
        except av.FFmpegError as error:
            yield error
        if packet is None:
            return
