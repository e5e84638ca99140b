"""What a video file holds (`probe_video`): pictures, times, colours, and all that goes over into an output."""
from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from .clip import Clip, MediaError
from .container import Joins, decoder_of, is_cover, open_container, reason, video_stream
from .pixel_formats import ColorTags, complete_tags, layout_of, to_rgb

STANDARD_RATES = tuple(Fraction(n, d) for n, d in (
    (24000, 1001), (24, 1), (25, 1), (30000, 1001), (30, 1), (48, 1), (50, 1), (60000, 1001), (60, 1), (100, 1), (120000, 1001),
    (120, 1), (240000, 1001), (240, 1), (15, 1), (15000, 1001), (12, 1), (10, 1)))
# metadata that describes the file it stands in and would be wrong in another one
_OF_THE_FILE = {"major_brand", "minor_version", "compatible_brands", "encoder", "duration", "timecode"}
APPLE = "com.apple.quicktime."
# frame side data that no encoder here writes, as FFmpeg and as people call it
_EXTRAS = {"A53_CC": "closed captions", "DOVI_METADATA": "Dolby Vision", "DOVI_RPU_BUFFER": "Dolby Vision", "DYNAMIC_HDR_PLUS": "HDR10+",
           "SPHERICAL": "the tags of 360 degree video", "STEREO3D": "the tags of stereoscopic video"}


def probe_video(path: str | Path, *, scan: bool = True) -> Clip:
    """What `path` holds. `scan` walks over all packets (without decoding) for the exact number of frames, their times and
    whether the file breaks off; without it the header's figures are taken. Raises MediaError.
    """
    path = Path(path)
    with contextlib.closing(open_container(path)) as container:
        stream = video_stream(container, path)
        stream.thread_type = "SLICE"                           # as `VideoReader` does
        first = _first_frame(container, stream, path)
        header_frames, duration = stream.frames, (container.duration or 0) / av.time_base
        # those that an edit list leaves out are in the header's number, but not all in the index
        samples = min(header_frames, len(getattr(stream, "index_entries", ())) or header_frames)
        sound = tuple(s.codec_context.name if s.codec_context else "" for s in container.streams if s.type in ("audio", "subtitle"))
        rates = [r for r in (stream.average_rate, stream.base_rate, stream.guessed_rate) if r]
        tick = stream.time_base or Fraction(1, 1000)
        context = stream.codec_context
        tags = ColorTags(int(first.colorspace), _tag(first, context, "color_primaries"), _tag(first, context, "color_trc"), False)
        kind = layout_of(first)
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
        # an AVI's header is written when the recording ends, and not by every program to the frame
        promised, slack = (samples, 0) if "mp4" in family else (header_frames, header_frames // 100) if family == "avi" else (0, 0)
        if promised - slack > count + hidden:
            missing = promised - hidden - count
            breaks_off = f"the last {missing} of its {promised - hidden} frames are missing"
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


def _first_frame(container, stream, path: Path) -> av.VideoFrame:
    errors = []
    decoder = decoder_of(stream)
    for packet in container.demux(stream):
        try:
            for frame in decoder.decode(packet if packet.size else None):
                return frame
        except av.FFmpegError as error:
            errors.append(error)
            if len(errors) > 300:
                break
    why = f" ({reason(errors[0])})" if errors else ""
    raise MediaError(f"{path} holds a video stream but not one frame that can be decoded{why}")


def _tag(frame, context, name: str) -> int:
    value = getattr(frame, name, None)                         # frames carry it from PyAV 14.3 on
    return int(value if value not in (None, 2) else getattr(context, name, 2))


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
    covers = sum(map(is_cover, others))
    words += ["the cover picture"] * bool(covers) + ["further video streams"] * (len(others) > covers)
    for stream in container.streams:
        chapters = getattr(getattr(stream, "discard", None), "name", "") == "all"          # .mov keeps them in a stream of text
        if stream.type == "data" and not chapters and not any(key.lower() == "timecode" for key in stream.metadata):
            words.append(f"the data stream {stream.metadata.get('handler_name', '').strip() or stream.index}")
    return tuple(dict.fromkeys(words))


def _scan(path: Path, timed: bool) -> tuple[np.ndarray, int, int, Fraction | None, Fraction | None, tuple[Fraction, ...]]:
    """Sorted times of the video's packets in ticks (none if they carry no times), their number, the number of those that an edit list
    hides or that hold nothing, the first moment of picture or sound and the last of any stream in seconds, and what `Joins` found.
    """
    times: list[int] = []
    untimed = hidden = 0
    first: Fraction | None = None
    last: Fraction | None = None
    with contextlib.closing(open_container(path)) as container:
        video = video_stream(container, path)
        # all of them: the container's duration is that of its longest stream, which subtitles or another video may be
        streams = [s for s in container.streams if s.type in ("audio", "subtitle", "data") or s.type == "video" and not is_cover(s)]
        ends: dict[int, tuple[int, Fraction]] = {}
        starts: dict[int, Fraction] = {}
        joins = Joins(container)
        try:
            for packet in container.demux(streams):
                joins.correct(packet)
                index = packet.stream_index
                if not packet.size or packet.is_discard:       # an empty one with a time stands for a frame that was dropped
                    hidden += index == video.index and (packet.size > 0 or packet.dts is not None)
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
    tick. Places on the grid may be empty (dropped frames), but not most of them: every time lies on the time base's own grid.
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
        steps = np.diff(numbers)
        if steps.min() > 0 and np.median(steps) <= 2 and (off < 1e-6 or off < 1.01 * float(tick) and tick * rate < Fraction(1, 5)):
            return rate, True
    return (1 / mean).limit_denominator(1001), False
