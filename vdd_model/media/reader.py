"""A video file's frames, one after the other (`VideoReader`): packets -> pictures (`Decoder`), and how many of them are damaged."""
from __future__ import annotations

import contextlib
import functools
import math
import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import torch

from .clip import Frame, VideoClip
from .container import Joins, decoder_of, open_container, packets_of, reason, video_stream
from .jpeg import END_OF_JPEG, MORE, is_unended
from .pixel_formats import UNSPECIFIED, ColorTags, beyond_limits, complete_tags, differ, layout, to_rgb

# Decoders that make a whole picture of half a packet without a word: of every encoder in PyAV's wheel one packet was cut and decoded.
# What stands here is put behind each packet for a second decoder: bytes that are no marker and of all kinds, so that a decoder which
# reads on makes another picture of them.
_BEHIND = dict.fromkeys(("asv2", "cfhd", "exr", "ffvhuff", "h264", "hevc", "huffyuv", "msvideo1", "qoi", "qtrle", "roqvideo",
                         "sunrast", "vp8", "vp9"), MORE) | {"snow": bytes(4) + MORE}       # FFmpeg 9 leaves zeros at the end away
# JPEG's tell when they are asked to be strict, and then of a missing end marker too, which many cameras leave away
_STRICT = dict.fromkeys(("amv", "jpegls", "mjpeg"), END_OF_JPEG)
_COMPARED = {*_BEHIND, "mjpeg"}
_SLICES = ("h264", "hevc")                                     # every packet shows one picture, but for fields
_NEAR = 3                                                      # packets before a join that are called corrupt and are not


class Decoder:
    """The pictures of a stream in order: iterate. An error stands in the place of what could not be decoded; decoding goes on behind it.

    `damaged` tells how many pictures hold damage. Most decoders say so; of bytes missing in a transport stream only the demuxer knows;
    those of `_BEHIND` and `_STRICT` are watched by a second decoder, given the `clip`.
    """

    def __init__(self, container, stream, clip: VideoClip | None = None):
        self.container, self.stream, self.clip = container, stream, clip
        self.decoder = decoder_of(stream)
        self.joins = Joins(container, stream.index, clip.joins if clip else ())
        self._pictures = self._waiting = 0                     # damaged ones; packets of one picture each that gave none
        self._shown, self._ended = 0, False                    # packets of `_SLICES` that gave none; whether all were read
        self._heads = self.decoder.extradata or b""            # parameter sets of H.264
        self._suspects: list[int] = []                         # numbers of the packets that the demuxer calls corrupt

    @property
    def damaged(self) -> int:
        """Pictures so far that hold damage, or are missing where others refer to what is not there."""
        return max(self._pictures + max(0, self._waiting), len(self._suspects), self._shown if self._ended else 0)

    def __iter__(self) -> Iterator[av.VideoFrame | Exception]:
        packets, number = packets_of(self.container, self.stream), 0
        slots: deque[int | None] | None = deque() if self.clip and self.clip.slotted else None
        alone = self.decoder.codec.intra_only and "jpeg" not in self.decoder.name       # every packet is a picture, of AV1 is shown as one
        alone = alone or self.decoder.name in ("av1", "libdav1d") and not (self.clip and self.clip.headless)
        sliced, fields = self.decoder.name in _SLICES and not (self.clip and self.clip.headless), False
        watcher = self._fresh() if self._is_watched() else None
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                self._ended = sliced and not fields
                return
            except av.FFmpegError as error:
                yield error
                packet = None                                  # the file ends here: flush the decoder
            # an empty packet with a time repeats a picture or stands for one that was dropped; it would end the decoder
            if packet is not None and not packet.size and packet.dts is not None:
                continue
            data = packet if packet is not None and packet.size else None
            number += 1
            if data and self.joins.correct(data):              # the last packets before such a place are whole, and yet called corrupt
                self._suspects = [n for n in self._suspects if n < number - _NEAR]
            if data and slots is not None:
                slots.append(data.dts)
            pictures, others, parts = [], [], []
            if data and sliced:
                coded = bytes(data)
                parts = [coded[start:end] for start, end in nal_units(coded, self.decoder)[1] if start < end]
            if self._begins_anew(parts):
                pictures, self.decoder = self._watch(self.decoder, None) or [], self._fresh(self._says_itself)
                if watcher:
                    others, watcher = self._watch(watcher, None) or [], self._fresh(self._says_itself)
            try:
                pictures = pictures + self.decoder.decode(data)
                for picture in pictures if slots else ():
                    picture.pts = slots.popleft() if slots else None
                if data and data.is_corrupt:
                    self._suspects.append(number)
                self._pictures += bool(data) and _is_short(bytes(data), self.decoder)
                self._waiting += bool(data and alone and not data.is_discard) - len(pictures)
                fields = fields or any(getattr(picture, "interlaced_frame", False) for picture in pictures)
                if data and not data.is_discard and not fields:
                    self._shown += any(_is_slice(part[0], self.decoder) for part in parts)
                self._shown -= len(pictures)
            except av.EOFError:
                pass
            except av.FFmpegError as error:
                yield error
            if watcher:
                more = self._watch(watcher, data)
                others = None if more is None else others + more
            else:
                others = pictures
            strict = others is None and self.decoder.name in _STRICT
            if others is None or len(others) != len(pictures):
                watcher, others = watcher if strict else None, pictures                    # else the two are no longer in step
            for picture, other in zip(pictures, others):
                self._pictures += bool(strict or getattr(picture, "is_corrupt", False) or picture is not other
                                       and self.decoder.name in _COMPARED and differ(picture, other))
                yield picture
            if packet is None:
                return

    def _begins_anew(self, parts: list[bytes]) -> bool:
        """Whether a packet of H.264 begins with other headers than those before, as where recordings were joined by copying: FFmpeg keeps
        the colors of the earlier one where the later says nothing, and gives frames that it still holds those of the later one."""
        if self.decoder.name != "h264" or not self.clip:
            return False
        heads = [part.rstrip(b"\0") for part in parts if part[0] & 31 == 7]
        anew = bool(self._heads) and any(head not in self._heads for head in heads) and any(part[0] & 31 == 5 for part in parts)
        self._heads = b"".join(heads) or self._heads
        return anew

    def _is_watched(self) -> bool:
        """Whether a second decoder watches over a silent one."""
        return bool(self.clip) and self.decoder is self.stream.codec_context and self.decoder.name in _BEHIND | _STRICT

    def _fresh(self, silent: bool = False) -> av.CodecContext:
        """Another decoder of the same stream, in its state at the beginning; a `silent` one knows no colors of the container's."""
        with contextlib.closing(open_container(self.clip.path)) as container:
            fresh = video_stream(container, self.clip.path).codec_context
        if fresh.name in _STRICT:
            fresh.options = {"err_detect": "explode"}
        if silent:
            fresh.colorspace, fresh.color_primaries, fresh.color_trc, fresh.color_range = UNSPECIFIED, UNSPECIFIED, UNSPECIFIED, 0
        return fresh

    @functools.cached_property
    def _says_itself(self) -> bool:
        """Whether the first picture says its colors itself: what the container says is then of the first recording alone."""
        with contextlib.closing(open_container(self.clip.path)) as container:
            decoder = Decoder(container, video_stream(container, self.clip.path))
            decoder.decoder = self._fresh(silent=True)
            first = next(item for item in decoder if not isinstance(item, Exception))
            return (int(first.colorspace), int(first.color_range)) == self.clip.first_says

    def _watch(self, watcher, data: av.Packet | None) -> list[av.VideoFrame] | None:
        packet = None
        if data is not None:
            more = MORE + END_OF_JPEG if is_unended(data, self.decoder.name) else (_BEHIND | _STRICT)[self.decoder.name]
            packet = av.Packet(_longer(bytes(data), more, self.decoder))
            packet.pts, packet.dts, packet.time_base, packet.is_keyframe = data.pts, data.dts, data.time_base, data.is_keyframe
        try:
            return watcher.decode(packet)
        except av.EOFError:
            return []
        except av.FFmpegError:
            return None


def _is_short(data: bytes, context) -> bool:
    """Whether a packet tells by its own figures that it was longer, where no decoder looks at them."""
    place, size = 0, len(data)
    match context.name:
        case "cinepak" | "rpza":                               # a byte, then the length; a few files are off by a few bytes
            return int.from_bytes(data[1:4], "big") > size + 16
        case "dirac":                                          # from each part to the next
            while data[place:place + 4] == b"BBCD" and (step := int.from_bytes(data[place + 5:place + 9], "big")):
                place += step
            return place > size
        case "gif":
            return gif_pictures(data)[1]
        case "h261":                                           # groups of blocks: 3, or 12 of the larger size; none may be left away
            bits = f"{int.from_bytes(data, 'big'):0{8 * size}b}"
            return len(re.findall("0{15}1(?!0000)", bits)) < (3 if context.width < 352 else 12)
        case "dpx":                                            # FFmpeg's parser has joined the rest of a picture and the next one
            return data.count(data[:16]) > 1
        case "speedhq":                                        # the other field, and four slices, each with its length
            place = 4
            for _ in range(3):
                place += int.from_bytes(data[place:place + 3], "little")
            return max(place, int.from_bytes(data[1:4], "little")) + 3 > size
    return False


def nal_units(data: bytes, context) -> tuple[int, list[tuple[int, int]]]:
    """(bytes of the length that stands before each part, 0 for start codes; start and end of each) of a packet of H.264 or HEVC."""
    head = context.extradata or b""
    if head[:1] != b"\1" or len(head) < 7:
        starts = [found.end() for found in re.finditer(b"\0\0\1", data)]
        return 0, list(zip(starts, [*starts[1:], len(data)]))
    size = (head[21 if context.name == "hevc" and len(head) > 22 else 4] & 3) + 1
    units, end = [], 0
    while (start := end + size) < len(data):
        end = start + int.from_bytes(data[end:start], "big")
        units.append((start, end))
    return size, units


def _is_slice(part: int, context) -> bool:
    """Whether the part of a packet of H.264 or HEVC with this first byte is one of a picture."""
    return part >> 1 & 63 < 32 if context.name == "hevc" else 1 <= part & 31 <= 5


def gif_pictures(data: bytes) -> tuple[int, bool]:
    """(whole pictures, whether it breaks off or holds something else behind them) of a GIF file or of a part of one."""
    place = whole = 0
    try:
        if data[:3] == b"GIF":                                 # its head and colors
            place = 13 + (3 << (data[10] & 7) + 1 if data[10] & 128 else 0)
        while place < len(data) and data[place] != 0x3B:
            kind, colors = data[place], data[place + 9] if data[place] == 0x2C else 0
            if kind not in (0, 0x21, 0x2C):
                return whole, True
            place += {0: 1, 0x21: 2, 0x2C: 11}[kind] + (3 << (colors & 7) + 1 if colors & 128 else 0)
            while kind and data[place]:                        # blocks of up to 255 bytes, an empty one is the last
                place += data[place] + 1
            place += kind != 0
            whole += kind == 0x2C
    except IndexError:
        return whole, True
    return whole, place > len(data)


def _longer(data: bytes, more: bytes, context) -> bytes:
    """`data` with `more` bytes at the end of the picture in it."""
    size, units = nal_units(data, context) if context.name in _SLICES else (0, [])
    if not size:
        return data + more
    start, end = next((unit for unit in reversed(units) if _is_slice(data[unit[0]], context)), (0, len(data) + 1))
    if end > len(data):                                        # what is shorter than it says is told by the decoder
        return data
    return data[:start - size] + (end - start + len(more)).to_bytes(size, "big") + data[start:end] + more + data[end:]


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
        previous, changed, one = -math.inf, "", max(1, round(1 / (clip.rate * clip.time_base)))
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
                pts = previous = max(self._time(item.pts, tick, index), previous + 1)
                interlaced += bool(getattr(item, "interlaced_frame", False))
                if beyond_limits(item, tags_of(item, clip)):
                    beyond.append(index)
                if index >= self.start:
                    rgb, alpha = upright_rgb(item, clip)
                    alpha = None if alpha is None else torch.from_numpy(alpha)
                    yield Frame(torch.from_numpy(rgb), alpha, pts, clip.hold if index == clip.num_frames - 1 and clip.hold else one, index)
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

    def _time(self, pts: int | None, tick: Fraction, index: int) -> int:
        clip = self.clip
        seconds = index / clip.rate if pts is None or clip.untimed else pts * tick - clip.origin
        if clip.constant_rate:
            seconds = max(0, round(seconds * clip.rate)) / clip.rate
        return round((clip.origin - clip.shift + seconds) / clip.time_base)


def tags_of(picture: av.VideoFrame, clip: VideoClip) -> ColorTags:
    """A decoded picture's colors: the clip's, and what it says of itself where that is not what the first one said."""
    matrix, value_range, tags = int(picture.colorspace), int(picture.color_range), clip.color
    if (matrix, value_range) != clip.first_says:
        tags = replace(tags, matrix=tags.matrix if matrix == clip.first_says[0] else matrix,
                       full_range=tags.full_range if value_range == clip.first_says[1] else value_range == 2)
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
