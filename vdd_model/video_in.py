"""Read video: what a file holds (`probe_video`) and its frames one after the other (`VideoReader`)."""
from __future__ import annotations

import contextlib
import math
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
    pixel_aspect: Fraction = Fraction(1)
    files: tuple[Path, ...] = ()            # the pictures of a sequence; empty for a video file
    sound: tuple[str, ...] = ()             # codec of each audio and subtitle stream
    metadata: tuple[tuple[str, str], ...] = ()
    origin: Fraction = Fraction(0)          # seconds of the first frame in the file
    shift: Fraction = Fraction(0)           # seconds taken off every stream so that the output starts at 0
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
    if path.stat().st_size == 0:
        raise MediaError(f"{path} is empty (0 bytes)")
    try:
        container = av.open(str(path), metadata_errors="replace")
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


def _video_stream(container, path: Path):
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
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
        turns = quarter_turns(first)
        width, height = (first.height, first.width) if turns % 2 else (first.width, first.height)
        aspect = stream.sample_aspect_ratio or Fraction(1)
        metadata = tuple((k, v) for k, v in container.metadata.items() if k in ("title", "artist", "comment", "creation_time", "date",
                                                                                  "location", "copyright", "description"))
        interlaced = bool(getattr(first, "interlaced_frame", False))
        pix_fmt, name, family = first.format.name, context.name, container.format.name
        has_alpha = kind.alpha and (name != "gif" or bool(to_rgb(first, tags)[1].min() < 1))
    missing, breaks_off = 0, ""
    if scan:
        times, count, hidden, first_time, last_time = _scan(path, timed=family != "avi")
        if "mp4" in family and samples > count + hidden:
            missing = samples - hidden - count
            breaks_off = f"the last {missing} of its {samples - hidden} frames are missing"
        elif duration and last_time is not None and duration - float(last_time) > max(0.3, 0.01 * duration):
            missing = max(1, round((duration - float(last_time)) * float(rates[0] if rates else 25)))
            breaks_off = f"it breaks off after {float(last_time):.1f} of {duration:.1f} s"
    else:
        times = np.empty(0, np.int64)
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
                quarter_turns=turns, pixel_aspect=1 / aspect if turns % 2 else aspect, sound=sound, metadata=metadata,
                origin=origin, shift=shift, interlaced=interlaced, untimed=scan and not len(times),
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


def quarter_turns(frame: av.VideoFrame) -> int:
    """Counter-clockwise quarter turns that the frame's display matrix asks for.

    Not read through `frame.side_data`: with PyAV 18 the interpreter crashes when such a container is collected.
    """
    return round(getattr(frame, "rotation", 0) / 90) % 4


def _scan(path: Path, timed: bool) -> tuple[np.ndarray, int, int, Fraction | None, Fraction | None]:
    """Sorted times of the video's packets in ticks (none if they carry no times), their number, the number of those that an edit list
    hides, the first moment of picture or sound and the last of any stream in seconds.
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
        try:
            for packet in container.demux(streams):
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
                if packet.stream.type in ("video", "audio") and (index not in starts or packet.pts * packet.time_base < starts[index]):
                    starts[index] = packet.pts * packet.time_base
        except av.FFmpegError:
            pass                                               # the reader will meet the same place and report it
    if ends:
        last = max(end * base for end, base in ends.values())
        first = min(starts.values(), default=None)
    count = max(1, len(times) + untimed)
    if untimed > len(times) or not timed:
        return np.empty(0, np.int64), count, hidden, None, None
    return np.sort(np.asarray(times, np.int64)), count, hidden, first, last


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
    for rate in [*claimed, *near, 1 / mean]:
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
            for item in _decode(container, stream):
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
        if clip.quarter_turns:
            rgb = np.ascontiguousarray(np.rot90(rgb, clip.quarter_turns))
            alpha = None if alpha is None else np.ascontiguousarray(np.rot90(alpha, clip.quarter_turns))
        return Frame(torch.from_numpy(rgb), None if alpha is None else torch.from_numpy(alpha), pts, duration, index)


def _decode(container, stream) -> Iterator[av.VideoFrame | Exception]:
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
        try:
            yield from decoder.decode(packet if packet is not None and packet.size else None)
        except av.EOFError:
            pass
        except av.FFmpegError as error:
            yield error
        if packet is None:
            return
