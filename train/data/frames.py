"""Frames of one clip on a disk, read at random places: picture files, or a video. Nothing here is random."""
from __future__ import annotations

import atexit
import contextlib
import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
from torch import Tensor

from vdd_model.errors import UserError
from vdd_model.media import images
from vdd_model.media.container import open_container, packets_of, video_stream
from vdd_model.media.probe import probe_video
from vdd_model.media.reader import VideoReader, upright_rgb

SEEK_BACK = (0, 10)                      # seconds before the first frame that is wanted: some containers land behind where they were sent
RATES = ((re.compile(r"(\d+) ?fps", re.IGNORECASE), None), (re.compile("gopro_large_all", re.IGNORECASE), 240.0))


class DataError(UserError):
    """Data that cannot be used; one sentence that names the folder or the file."""


CropBox = tuple[int, int, int, int]          # x0, y0, x1, y1


def read_picture(path: Path, box: CropBox | None = None, size: tuple[int, int] | None = None) -> Tensor:
    """(3, H, W) uint8 RGB, upright; `box` cuts. Raises DataError naming the file, also when the whole picture is not of `size` (w, h)."""
    picture = _looked_at(images.read_picture, path).permute(2, 0, 1)
    height, width = picture.shape[1:]
    if size and (width, height) != size:
        raise DataError("{}: {} x {} pixels, the clip's first frame has {} x {}".format(path, width, height, *size))
    x0, y0, x1, y1 = box or (0, 0, width, height)
    return picture[:, y0:y1, x0:x1].contiguous()


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height) in pixels, upright, mostly from the picture's header. Raises DataError naming the file."""
    return _looked_at(images.picture_size, path)


def _looked_at(look: Callable, path: Path):
    try:
        return look(path)
    except UserError as error:
        raise DataError(f"{path}: cannot be read as a picture ({str(error).removeprefix(str(path)).strip()})") from None


@dataclass
class PictureFrames:
    """A clip stored as one picture file per frame."""

    name: str
    paths: list[Path]

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels of the first frame. Raises DataError."""
        return picture_size(self.paths[0])

    @property
    def rate(self) -> float:
        """Frames per second, as far as the path says: `..._240fps/...`, GOPRO_Large_all; else 30."""
        for pattern, rate in RATES:
            if found := pattern.search(str(self.paths[0].parent)):
                return rate or float(found[1])
        return 30.0

    def read(self, numbers: range, box: CropBox | None = None) -> Tensor:
        """The frames `numbers`, or their `box`: uint8 (F, 3, H, W), RGB. Raises DataError naming the file."""
        size = self.size if box or len(numbers) > 1 else None      # a box that a frame does not fill would come out with a black border
        return torch.stack(list((pool().map if len(numbers) > 1 else map)(
            lambda i: read_picture(self.paths[i], box, size=size), numbers)))


@dataclass
class VideoFrames:
    """A clip stored as a video file. Its frames are those that `VideoReader` gives."""

    name: str
    path: Path

    def __len__(self) -> int:
        return self._index.number

    @cached_property
    def _clip(self):
        return probe_video(self.path)

    @cached_property
    def _index(self) -> Index:
        clip, packets, number = self._clip, [], 0
        with open_container(self.path) as container, contextlib.suppress(av.FFmpegError):     # as far as the file goes
            for packet in packets_of(container, video_stream(container, self.path)):
                if packet.size and not packet.is_discard:
                    packets.append((packet.pts, packet.is_keyframe))
        times = sorted({pts for pts, _ in packets if pts is not None})
        if packets and len(times) == len(packets) and packets[0][1] and not (clip.untimed or clip.slotted or clip.joins):
            return Index(len(times), times, {pts for pts, key in packets if key})
        with open_container(self.path) as container, contextlib.suppress(av.FFmpegError):     # packets do not tell how many can be decoded
            stream = video_stream(container, self.path)
            stream.thread_type = "SLICE"                       # as `VideoReader` does
            for _ in container.decode(stream):
                number += 1
        return Index(number, [], set())

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self._clip.width, self._clip.height

    @property
    def rate(self) -> float:
        """Frames per second."""
        return float(self._clip.rate)

    def read(self, numbers: range, box: CropBox | None = None) -> Tensor:
        """The frames `numbers`, or their `box`: uint8 (F, 3, H, W), RGB. Raises DataError naming the file."""
        x0, y0, x1, y1 = box or (0, 0, *self.size)

        def picture(rgb: np.ndarray) -> Tensor:
            """The box of a frame (H, W, 3) in [0, 1], in 8 bits: (3, h, w)."""
            return torch.from_numpy(np.rint(rgb[y0:y1, x0:x1].clip(0, 1) * 255).astype(np.uint8)).permute(2, 0, 1)

        try:
            frames = self._sought(numbers, picture)
            if frames is None:
                frames = self._walked(numbers, picture)
        except (av.FFmpegError, UserError) as error:
            raise DataError(f"{self.path}: cannot be decoded ({error})") from None
        if len(frames) < len(numbers):
            raise DataError(f"{self.path}: frames {numbers.start} to {numbers.stop - 1} cannot be decoded")
        return torch.stack(frames)

    def _sought(self, numbers: range, picture: Callable[[np.ndarray], Tensor]) -> list[Tensor] | None:
        """The frames that can be decoded from the key frame before them; None where no seek leads there, as in some transport streams."""
        _, times, keys = self._index
        wanted = {times[i] for i in numbers} if times else set()
        for back in SEEK_BACK if times else ():
            found: dict[int, Tensor] = {}
            with open_container(self.path) as container:
                stream = video_stream(container, self.path)
                try:
                    container.seek(max(times[0], min(wanted) - round(back / stream.time_base)), stream=stream)
                except av.FFmpegError:                         # Matroska without key frames in its index
                    return None
                key = None
                for frame in container.decode(stream):
                    if key is None and frame.key_frame:
                        key = frame.pts
                        if key not in keys or key > min(wanted):       # a time that is not its own, or behind them
                            break
                    if key is None or frame.pts is None:               # what comes before a key frame lacks its references
                        continue
                    if frame.pts in wanted:
                        found[frame.pts] = picture(upright_rgb(frame, self._clip)[0])
                    if len(found) == len(wanted) or frame.pts > max(wanted):
                        break
            if key in keys and key <= min(wanted):
                return [found[time] for time in sorted(found)]
        return None

    def _walked(self, numbers: range, picture: Callable[[np.ndarray], Tensor]) -> list[Tensor]:
        """The frames, decoded from the file's first on, or from where this thread stopped: as many as there are before any damage, behind
        which numbers no longer hold.
        """
        clip, following, reader, walk = getattr(_thread, "walk", (None, 0, None, None))
        if clip is not self or following > numbers.start:
            reader = VideoReader(self._clip)
            walk = iter(reader)
        _thread.walk, reader.start, frames = (None, 0, None, None), numbers.start, []
        for frame in walk:
            if reader.notes:
                break
            frames.append(picture(frame.rgb.numpy()))
            if frame.index == numbers.stop - 1:
                _thread.walk = self, numbers.stop, reader, walk
                break
        return frames


Frames = PictureFrames | VideoFrames         # of one clip, read at random places


class Index(NamedTuple):
    """How many frames a video has, their times in ticks, and the key frames' among them; no times where they do not lead to a frame."""

    number: int
    times: list[int]
    keys: set[int]


_thread = threading.local()              # `walk`: clip, number of its next frame, reader and frames, to read on from there
atexit.register(lambda: _thread.__dict__.clear())              # while PyAV is still there to close the file


@cache
def pool() -> ThreadPoolExecutor:
    """The threads in which pictures are decoded."""
    return ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1))
