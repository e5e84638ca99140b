"""Read video: what a file holds (`probe_video`) and its frames one after the other (`VideoReader`)."""
from __future__ import annotations

import contextlib
import math
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

from .errors import UserError
from .planes import ColorTags, complete_tags, layout, to_rgb

# formats that ffmpeg "plays" but that are text or sound, never a clip
NOT_VIDEO = {"tty", "bin", "adf", "idf", "xbin", "srt", "webvtt", "ass", "lrc", "microdvd", "txt", "ffmetadata", "data", "concat"}
STANDARD_RATES = tuple(Fraction(n, d) for n, d in (
    (24000, 1001), (24, 1), (25, 1), (30000, 1001), (30, 1), (48, 1), (50, 1), (60000, 1001), (60, 1), (100, 1), (120000, 1001),
    (120, 1), (240000, 1001), (240, 1), (15, 1), (15000, 1001), (12, 1), (10, 1)))
_ATTACHED_PIC = 0x400                                          # AV_DISPOSITION_ATTACHED_PIC: a cover, not a clip
# metadata that describes the file it stands in and would be wrong in another one
_OF_THE_FILE = {"major_brand", "minor_version", "compatible_brands", "encoder", "duration", "timecode"}
APPLE = "com.apple.quicktime."
# frame side data that no encoder here writes, as FFmpeg and as people call it
_EXTRAS = {"A53_CC": "closed captions", "DOVI_METADATA": "Dolby Vision", "DOVI_RPU_BUFFER": "Dolby Vision", "DYNAMIC_HDR_PLUS": "HDR10+",
           "SPHERICAL": "the tags of 360 degree video", "STEREO3D": "the tags of stereoscopic video"}


class MediaError(UserError):
    """A clip that cannot be read or written as asked; the message is one sentence for the user."""


@dataclass
class Frame:
    """One picture: `rgb` (H,W,3) and `alpha` (H,W) or None, float32 in [0,1]; `pts` and `duration` in the clip's `time_base`."""

    rgb: torch.Tensor
    alpha: torch.Tensor | None
    pts: int
    duration: int
    index: int


@dataclass(frozen=True)
class Clip:
    """What is known of an input before its frames are read. Width and height are upright (rotation applied)."""

    path: Path
    width: int
    height: int
    num_frames: int                         # by the file's own count; the reader may find fewer
    rate: Fraction                          # frames per second
    time_base: Fraction                     # seconds per tick of Frame.pts
    constant_rate: bool = True
    bit_depth: int = 8
    has_alpha: bool = False
    gray: bool = False
    color: ColorTags = field(default_factory=ColorTags)      # complete: the matrix that is really used
    codec: str = ""
    pix_fmt: str = ""
    quarter_turns: int = 0                  # counter-clockwise, applied by the reader
    mirrored: bool = False                  # left and right are swapped after that, by the reader too
    pixel_aspect: Fraction = Fraction(1)
    files: tuple[Path, ...] = ()            # the pictures of a sequence; empty for a video file
    sound: tuple[str, ...] = ()             # codec of each audio and subtitle stream
    metadata: tuple[tuple[str, str], ...] = ()
    timecode: str = ""                      # of the first frame, hh:mm:ss:ff, or ;ff for drop frame
    chapters: tuple[tuple[Fraction, Fraction, str], ...] = ()          # (start, end, title), seconds in the file
    png_chunks: bytes = b""                 # of a picture sequence: what its colours mean, as PNG says it
    light: str = ""                         # mastering display and content light level as libx265 takes them
    extras: tuple[str, ...] = ()            # what else is in the file and has no place in an output, in words
    attached: tuple[str, ...] = ()          # names of attached files
    origin: Fraction = Fraction(0)          # seconds of the first frame in the file
    shift: Fraction = Fraction(0)           # seconds taken off every stream so that the output starts at 0
    joins: tuple[Fraction, ...] = ()        # of a file joined by copying: seconds to add to the times behind each place
    interlaced: bool = False
    untimed: bool = False                   # the file carries no usable times: frames are counted instead
    size_bytes: int = 0
    missing: int = 0                        # frames that the header promises and the file does not hold, as far as known
    breaks_off: str = ""                    # the same in words

    @property
    def is_sequence(self) -> bool:
        """Whether the clip is a row of picture files."""
        return bool(self.files)

    @property
    def duration(self) -> float:
        """Seconds."""
        return float(self.num_frames / self.rate)


def open_container(path: Path):
    """`av.open` for reading, with every failure turned into one MediaError sentence."""
    if not path.exists():
        raise MediaError(f"{path} does not exist")
    if path.is_dir():
        raise MediaError(f"{path} is a folder, not a video file")
    if not path.is_file():
        raise MediaError(f"{path} is a pipe or a device; clips are read more than once, so save it to a file first")
    if path.stat().st_size == 0:
        raise MediaError(f"{path} is empty (0 bytes)")
    try:
        container = av.open(os.path.abspath(path), metadata_errors="replace")      # FFmpeg would take 12:30.mp4 for an address
    except PermissionError:
        raise MediaError(f"{path} may not be read (permission denied)") from None
    except av.EOFError:
        raise MediaError(f"{path} ends behind its header and holds not one frame") from None
    except (av.FFmpegError, OSError, ValueError) as error:
        raise MediaError(f"{path} is not a video that can be read, or its header is missing ({_reason(error)}); if a player opens it, "
                         "convert it first, e.g. with ffmpeg") from error
    if set(container.format.name.split(",")) & NOT_VIDEO:
        container.close()
        raise MediaError(f"{path} is not a video (it looks like {container.format.long_name or container.format.name})")
    return container


def _reason(error: BaseException) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).rstrip(".")


def _is_cover(stream) -> bool:
    disposition = getattr(stream, "disposition", 0)            # PyAV before 14.2 does not say
    return bool(int(getattr(disposition, "value", disposition)) & _ATTACHED_PIC)


def _video_stream(container, path: Path):
    for stream in container.streams.video:
        if not _is_cover(stream):
            return stream
    raise MediaError(f"{path} has no video in it" + (", only sound" if container.streams.audio else ""))


def probe_video(path: str | Path, *, scan: bool = True) -> Clip:
    """What `path` holds. `scan` walks over all packets (without decoding) for the exact number of frames, their times and
    whether the file breaks off; without it the header's figures are taken. Raises MediaError.
    """
    path = Path(path)
    with contextlib.closing(open_container(path)) as container:
        stream = _video_stream(container, path)
        stream.thread_type = "AUTO"
        first = _first_frame(container, stream, path)
        header_frames, duration = stream.frames, (container.duration or 0) / av.time_base
        # those that an edit list leaves out are in the header's number, but not all in the index
        samples = min(header_frames, len(getattr(stream, "index_entries", ())) or header_frames)
        sound = tuple(s.codec_context.name if s.codec_context else "" for s in container.streams if s.type in ("audio", "subtitle"))
        rates = [r for r in (stream.average_rate, stream.base_rate, stream.guessed_rate) if r]
        tick = stream.time_base or Fraction(1, 1000)
        context = stream.codec_context
        tags = ColorTags(int(first.colorspace), _tag(first, context, "color_primaries"), _tag(first, context, "color_trc"), False)
        kind = _layout_of(first)
        full = int(first.color_range) == 2 or first.format.name.startswith("yuvj") or (
            kind.kind == "gray" and int(first.color_range) == 0 and context.name not in ("h264", "hevc", "vp9", "av1"))
        tags = complete_tags(ColorTags(tags.matrix, tags.primaries, tags.transfer, full), kind.kind, first.height, first.width)
        turns, mirrored = orientation(first)
        width, height = (first.height, first.width) if turns % 2 else (first.width, first.height)
        aspect = stream.sample_aspect_ratio or Fraction(1)
        metadata, timecode, chapters = _metadata(container), _timecode(container, stream), _chapters(container)
        light, extras = _light(first), _extras(container, stream, first)
        attached = tuple(s.metadata.get("filename", "") for s in container.streams if s.type == "attachment")
        interlaced = bool(getattr(first, "interlaced_frame", False))
        pix_fmt, name, family = first.format.name, context.name, container.format.name
        has_alpha = kind.alpha and (name != "gif" or bool(to_rgb(first, tags)[1].min() < 1))
    missing, breaks_off = 0, ""
    if scan:
        # AVI tells when a frame is decoded, which is when it is shown only where none is reordered
        times, count, hidden, first_time, last_time, joins = _scan(path, timed=family != "avi" or not context.codec.reorder)
        if "mp4" in family and samples > count + hidden:
            missing = samples - hidden - count
            breaks_off = f"the last {missing} of its {samples - hidden} frames are missing"
        elif duration and last_time is not None and duration - float(last_time) > max(0.3, 0.01 * duration):
            missing = max(1, round((duration - float(last_time)) * float(rates[0] if rates else 25)))
            breaks_off = f"it breaks off after {float(last_time):.1f} of {duration:.1f} s"
    else:
        times, joins = np.empty(0, np.int64), ()
        first_time = Fraction(first.pts or 0) * tick
        count = header_frames or max(1, round(duration * float(rates[0] if rates else 25)))
    rate, constant = _frame_rate(times, tick, rates)
    origin = Fraction(int(times[0])) * tick if len(times) else first_time or Fraction(0)
    shift = max(Fraction(0), first_time or Fraction(0))
    if constant:
        exact = (origin - shift) * rate.numerator
        tick = Fraction(1, rate.numerator if exact.denominator == 1 else rate.numerator * math.ceil(90000 / rate.numerator))
    return Clip(path=path, width=width, height=height, num_frames=count, rate=rate, time_base=tick, constant_rate=constant,
                bit_depth=min(16, kind.depth), has_alpha=has_alpha, gray=kind.kind == "gray", color=tags, codec=name, pix_fmt=pix_fmt,
                quarter_turns=turns, mirrored=mirrored, pixel_aspect=1 / aspect if turns % 2 else aspect, sound=sound,
                metadata=metadata, timecode=timecode, chapters=chapters, light=light, extras=extras, attached=attached,
                origin=origin, shift=shift, joins=joins, interlaced=interlaced, untimed=scan and not len(times),
                size_bytes=path.stat().st_size, missing=missing, breaks_off=breaks_off)


def _tag(frame, context, name: str) -> int:
    value = getattr(frame, name, None)                         # frames carry it from PyAV 14.3 on
    return int(value if value not in (None, 2) else getattr(context, name, 2))


def _layout_of(frame: av.VideoFrame):
    try:
        return layout(frame.format.name)
    except ValueError:
        return layout("rgba64le" if "a" in frame.format.name else "rgb48le")


def _decoder(stream):
    """The context that decodes the stream's packets. VP8 and VP9 carry transparency beside the picture; only libvpx decodes it."""
    name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name)
    if name and stream.metadata.get("alpha_mode") == "1" and name in av.codecs_available:
        return av.CodecContext.create(name, "r")
    return stream.codec_context


def _first_frame(container, stream, path: Path) -> av.VideoFrame:
    errors = []
    decoder = _decoder(stream)
    for packet in container.demux(stream):
        try:
            for frame in decoder.decode(packet if packet.size else None):
                return frame
        except av.FFmpegError as error:
            errors.append(error)
            if len(errors) > 300:
                break
    reason = f" ({_reason(errors[0])})" if errors else ""
    raise MediaError(f"{path} holds a video stream but not one frame that can be decoded{reason}")


def _side_data(frame: av.VideoFrame) -> dict[str, bytes]:
    """A frame's side data by FFmpeg's names.

    Not through `frame.side_data`: it is kept in the frame and refers back to it, and with PyAV 18 the interpreter can crash when such
    a circle is collected.
    """
    from av.sidedata.sidedata import SideDataContainer
    try:
        return {data.type.name: bytes(data) for data in SideDataContainer(frame)}
    except ValueError:                                         # one of them is newer than this PyAV
        return {}


def orientation(frame: av.VideoFrame) -> tuple[int, bool]:
    """(counter-clockwise quarter turns, whether left and right are swapped after them) that the frame's display matrix asks for."""
    matrix = struct.unpack("=9i", _side_data(frame).get("DISPLAYMATRIX", b"")[:36] or bytes(36))
    a, b, _, c, d = matrix[:5]
    if a * d - b * c < 0:
        return round(-math.degrees(math.atan2(b, -a)) / 90) % 4, True
    return round(getattr(frame, "rotation", 0) / 90) % 4, False


def _light(frame: av.VideoFrame) -> str:
    """HDR10's static metadata in libx265's words: chromaticities in 1/50000, luminances in 1/10000 cd/m2."""
    found, words = _side_data(frame), []
    display = found.get("MASTERING_DISPLAY_METADATA", b"")
    if len(display) >= 88:                                     # red, green, blue, white (x, y), darkest, brightest, two flags
        values = struct.unpack("=22i", display[:88])
        scaled = [round(n * (50000 if i < 8 else 10000) / d) if d else 0 for i, (n, d) in enumerate(zip(values[:20:2], values[1:20:2]))]
        if all(values[20:]):
            places = {"G": scaled[2:4], "B": scaled[4:6], "R": scaled[:2], "WP": scaled[6:8], "L": scaled[9:7:-1]}
            words.append("master-display=" + "".join(f"{name}({x},{y})" for name, (x, y) in places.items()))
    if len(levels := found.get("CONTENT_LIGHT_LEVEL", b"")) >= 8:
        words.append("max-cll={},{}".format(*struct.unpack("=2I", levels[:8])))
    return ":".join(words)


def _metadata(container) -> tuple[tuple[str, str], ...]:
    """The file's metadata, Apple's place, make and model also under the names that every container knows."""
    found = {k: v for k, v in container.metadata.items() if k.lower() not in _OF_THE_FILE}
    for name, key in (("location", "location.ISO6709"), ("make", "make"), ("model", "model")):
        if APPLE + key in found:
            found.setdefault(name, found[APPLE + key])
    return tuple(found.items())


def _timecode(container, video) -> str:
    for source in (video, container, *container.streams):
        for key, value in source.metadata.items():
            if key.lower() == "timecode":
                return value
    return ""


def _chapters(container) -> tuple[tuple[Fraction, Fraction, str], ...]:
    found = container.chapters() if hasattr(container, "chapters") else []     # from PyAV 14.3 on
    return tuple((c["start"] * c["time_base"], c["end"] * c["time_base"], c["metadata"].get("title", "")) for c in found)


def _extras(container, video, frame: av.VideoFrame) -> tuple[str, ...]:
    """What no output can take over, in words: streams of data and further pictures, and side data of the first frame."""
    words = [_EXTRAS[name] for name in _side_data(frame) if name in _EXTRAS]
    others = [s for s in container.streams.video if s != video]
    covers = sum(map(_is_cover, others))
    words += ["the cover picture"] * bool(covers) + ["further video streams"] * (len(others) > covers)
    for stream in container.streams:
        chapters = getattr(getattr(stream, "discard", None), "name", "") == "all"          # .mov keeps them in a stream of text
        if stream.type == "data" and not chapters and not any(key.lower() == "timecode" for key in stream.metadata):
            words.append(f"the data stream {stream.metadata.get('handler_name', '').strip() or stream.index}")
    return tuple(dict.fromkeys(words))


class Joins:
    """Puts the times of transport and program streams that were joined by copying behind one another, as players do.

    At every place where the times of a stream step back by more than a quarter of a second, the next of `found` is added from there on.
    The picture sets them, when the file is walked over for the first time; the sound keeps its distance to it.
    """

    def __init__(self, container, found: Sequence[Fraction] = ()):
        self.found = list(found)
        self._used = bool({"mpegts", "mpeg"} & set(container.format.name.split(",")))
        self._streams: dict[int, tuple[int, Fraction, Fraction]] = {}          # (places passed, last time, step) in seconds

    def correct(self, packet: av.Packet) -> None:
        """Shift the packet's times; packets of a stream have to come in their order."""
        if not self._used or packet.dts is None:
            return
        time = packet.dts * packet.time_base
        passed, last, step = self._streams.get(packet.stream_index, (0, None, Fraction(0)))
        offset = self.found[passed - 1] if passed else Fraction(0)
        if last is not None and time + offset < last - Fraction(1, 4):
            if passed == len(self.found) and packet.stream.type == "video":
                self.found.append(last + step - time)
            passed = min(passed + 1, len(self.found))
            offset = self.found[passed - 1] if passed else Fraction(0)
        elif last is not None:
            step = time + offset - last
        self._streams[packet.stream_index] = passed, time + offset, step
        ticks = round(offset / packet.time_base)
        packet.dts += ticks
        if packet.pts is not None:
            packet.pts += ticks


def _scan(path: Path, timed: bool) -> tuple[np.ndarray, int, int, Fraction | None, Fraction | None, tuple[Fraction, ...]]:
    """Sorted times of the video's packets in ticks (none if they carry no times), their number, the number of those that an edit list
    hides, the first moment of picture or sound and the last of any stream in seconds, and what `Joins` found.
    """
    times: list[int] = []
    untimed = hidden = 0
    first: Fraction | None = None
    last: Fraction | None = None
    with contextlib.closing(open_container(path)) as container:
        video = _video_stream(container, path)
        # all of them: the container's duration is that of its longest stream, which subtitles may be
        streams = [s for s in container.streams if s == video or s.type in ("audio", "subtitle", "data")]
        ends: dict[int, tuple[int, Fraction]] = {}
        starts: dict[int, Fraction] = {}
        joins = Joins(container)
        try:
            for packet in container.demux(streams):
                joins.correct(packet)
                index = packet.stream_index
                if not packet.size or packet.is_discard:
                    hidden += bool(packet.size) and index == video.index
                    continue
                if packet.pts is None:
                    untimed += index == video.index
                    continue
                if index == video.index:
                    times.append(packet.pts)
                end = packet.pts + (packet.duration or 0)
                if index not in ends or end > ends[index][0]:
                    ends[index] = (end, packet.time_base)
                if packet.stream.type == "audio":
                    starts.setdefault(index, packet.pts * packet.time_base)
                elif index == video.index:
                    starts[index] = min(packet.pts * packet.time_base, starts.get(index, packet.pts * packet.time_base))
        except av.FFmpegError:
            pass                                               # the reader will meet the same place and report it
    if ends:
        last = max(end * base for end, base in ends.values())
        first = min(starts.values(), default=None)
    count = max(1, len(times) + untimed)
    if untimed > len(times) or not timed:
        return np.empty(0, np.int64), count, hidden, None, None, tuple(joins.found)
    return np.sort(np.asarray(times, np.int64)), count, hidden, first, last, tuple(joins.found)


def _frame_rate(times: np.ndarray, tick: Fraction, claimed: Sequence[Fraction]) -> tuple[Fraction, bool]:
    """(frame rate, whether all times lie on its grid): the first claimed or standard rate that explains the times to within one
    tick. Places on the grid may be empty (dropped frames). Only times off every grid are a truly variable rate.
    """
    default = claimed[0] if claimed else Fraction(25)
    if len(times) < 2 or times[-1] <= times[0]:
        return default, True
    mean = Fraction(int(times[-1] - times[0]), len(times) - 1) * tick
    near = sorted((r for r in STANDARD_RATES if abs(r * mean - 1) < Fraction(1, 100)), key=lambda r: abs(r * mean - 1))
    seconds = (times - times[0]).astype(np.float64) * float(tick)
    for rate in [*claimed, *near, (1 / mean).limit_denominator(100_000)]:      # FFmpeg's fractions have 32 bits
        numbers = np.rint(seconds * float(rate))
        off = np.abs(seconds - numbers / float(rate)).max()
        if np.diff(numbers).min() > 0 and (off < 1e-6 or off < 1.01 * float(tick) and tick * rate < Fraction(1, 5)):
            return rate, True
    return (1 / mean).limit_denominator(1001), False


class VideoReader:
    """Iterate over a clip's frames, upright, as `Frame`s. After the last one `lost` and `notes` say what could not be read.

    `start`: frames before this index are decoded but neither converted nor yielded.
    """

    def __init__(self, clip: Clip, start: int = 0):
        self.clip, self.start = clip, start
        self.lost = 0
        self.notes: list[str] = []

    def __iter__(self) -> Iterator[Frame]:
        clip, index, damaged, errors = self.clip, 0, 0, 0
        previous = None
        changed = ""
        tick = None
        with contextlib.closing(open_container(clip.path)) as container:
            stream = _video_stream(container, clip.path)
            stream.thread_type = "AUTO"
            tick = stream.time_base or Fraction(1, 1000)
            for item in _decode(container, stream, Joins(container, clip.joins)):
                if isinstance(item, Exception):
                    errors += 1
                    if not any(_reason(item) in note for note in self.notes):
                        self.notes.append(f"a part after frame {index} could not be decoded ({_reason(item)})")
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
                index += 1
        if changed:
            self.notes = [changed]
        self.lost = max(0, clip.num_frames - index)
        if clip.breaks_off:
            self.notes.insert(0, clip.breaks_off)
            self.lost = max(self.lost, clip.missing)
        if damaged:
            self.notes.append(f"{damaged} frame{'s are' if damaged > 1 else ' is'} damaged")
            self.lost = max(self.lost, damaged)
        if self.lost and not self.notes:
            # a few packets without a picture of their own (fields, hidden frames) are no loss
            self.lost = 0
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
        clip = self.clip
        rgb, alpha = to_rgb(picture, clip.color, centred_chroma=clip.codec in ("mjpeg", "webp"))
        if clip.quarter_turns or clip.mirrored:
            rgb, alpha = (x if x is None else _upright(x, clip) for x in (rgb, alpha))
        return Frame(torch.from_numpy(rgb), None if alpha is None else torch.from_numpy(alpha), pts, duration, index)


def _upright(picture: np.ndarray, clip: Clip) -> np.ndarray:
    turned = np.rot90(picture, clip.quarter_turns)
    return np.ascontiguousarray(turned[:, ::-1] if clip.mirrored else turned)


def _decode(container, stream, joins: Joins) -> Iterator[av.VideoFrame | Exception]:
    """Frames in order; an error is yielded in its place and decoding goes on behind it."""
    packets, decoder = container.demux(stream), _decoder(stream)
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
