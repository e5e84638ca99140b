"""What a video file holds (`probe_video`): pictures, times, colors, and all that goes over into an output."""
from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np

from .clip import MediaError, VideoClip
from .container import (
    Joins,
    encrypted,
    is_cover,
    is_own_data,
    is_scrambled,
    is_telemetry,
    later_streams,
    name_of,
    open_container,
    packets_of,
    presentation,
    reason,
    track_tags,
    video_stream,
)
from .pixel_formats import CONSTANT_LUMINANCE, KNOWN_MATRICES, UNSPECIFIED, ColorTags, Layout, complete_tags, layout, to_rgb
from .png import graph_of
from .reader import Decoder, gif_pictures, nal_units

STANDARD_RATES = tuple(Fraction(n, d) for n, d in (
    (24000, 1001), (24, 1), (25, 1), (30000, 1001), (30, 1), (48, 1), (50, 1), (60000, 1001), (60, 1), (100, 1), (120000, 1001),
    (120, 1), (240000, 1001), (240, 1), (15, 1), (15000, 1001), (12, 1), (10, 1)))
# streams without a container: they carry no times, and their rate only inside
RAW = {"h264", "hevc", "vvc", "evc", "m4v", "mpegvideo", "vc1", "cavsvideo", "avs2", "avs3", "dirac", "obu", "h261", "h263", "mjpeg"}
# metadata that describes the file it stands in and would be wrong in another one
_OF_THE_FILE = {"major_brand", "minor_version", "compatible_brands", "encoder", "duration", "timecode"}
_OF_AN_MXF = re.compile(r"(generation_|product_)?uid|operational_pattern_ul|(product|toolkit)_version(_num)?|application_platform|.*_umid")
APPLE = "com.apple.quicktime."
_SEGMENT = 0x18538067                                          # Matroska: what holds all else
# frame side data that no encoder here writes, as FFmpeg and as people call it
_EXTRAS = {"A53_CC": "closed captions", "DOVI_METADATA": "Dolby Vision", "DOVI_RPU_BUFFER": "Dolby Vision", "DYNAMIC_HDR_PLUS": "HDR10+",
           "SPHERICAL": "the tags of 360 degree video", "STEREO3D": "the tags of stereoscopic video"}


def probe_video(path: str | Path) -> VideoClip:
    """What `path` holds. Walks over all packets (without decoding) for the exact number of frames, their times and whether the file
    breaks off. Raises MediaError.
    """
    path = Path(path)
    with contextlib.closing(open_container(path)) as container:
        # what the file says: before a picture is decoded, for many decoders then overwrite the container's colors with "not said"
        stream = video_stream(container, path)
        if "enc_key_id" in stream.metadata:                    # Matroska's
            raise encrypted(path)
        context, tick, family = stream.codec_context, stream.time_base or Fraction(1, 1000), container.format.name
        said = ColorTags(int(context.colorspace), int(context.color_primaries), int(context.color_trc), int(context.color_range) == 2)
        crop, chroma = presentation(container, stream)
        aspect = stream.sample_aspect_ratio or Fraction(1)
        header_frames, duration = stream.frames, (container.duration or 0) / av.time_base
        if header_frames > path.stat().st_size:                # nobody came back to write it, as where an AVI went through a pipe
            header_frames = duration = 0
        # those that an edit list leaves out are in the header's number, but not all in the index
        samples = min(header_frames, len(getattr(stream, "index_entries", ())) or header_frames * hasattr(stream, "index_entries"))
        rates = [r for r in (stream.average_rate, stream.base_rate, stream.guessed_rate) if r]
        if family in RAW:                                      # of these only the last one looks into the stream
            rates.reverse()
        first = _first_frame(container, stream, path)
        # what the first picture says
        kind = layout(first.format.name)
        tags = _colors(first, said, context.name, kind)
        turns, mirrored = orientation(first)
        light, (extras, telemetry), remarks = _light(first), _extras(container, stream, first), []
        found = container.chapters() if hasattr(container, "chapters") else ()             # from PyAV 14.3 on
        chapters = tuple((c["start"] * c["time_base"], c["end"] * c["time_base"], c["metadata"].get("title", "")) for c in found)
        if tags.matrix not in KNOWN_MATRICES:
            remarks.append(f"its colors are stored with matrix {tags.matrix} of H.273, which is taken for "
                           + ("BT.2020's with non-constant luminance" if tags.matrix == CONSTANT_LUMINANCE else "BT.709's"))
        has_alpha = kind.alpha and (family != "gif" and path.suffix.lower() != ".webp" or bool(to_rgb(first, tags)[1].min() < 1))
        # Windows' RGB of 32 bits: the fourth byte is unused, and alpha where a program has agreed with itself that it is
        fourth = has_alpha and family == "avi" and context.name == "rawvideo"
        if has_alpha and family == "avi" and not fourth:       # packed, as in HuffYUV: the first picture must do
            rgb, alpha = to_rgb(first, tags)
            has_alpha = bool(alpha.any() or not rgb.any())
        facts = {"color": tags, "first_says": (int(first.colorspace), int(first.color_range)),
                 "codec": context.name, "pix_fmt": first.format.name, "bit_depth": min(16, kind.depth),
                 "gray": kind.kind == "gray", "quarter_turns": turns, "mirrored": mirrored, "chroma": chroma, "crop": crop,
                 "pixel_aspect": 1 / aspect if turns % 2 else aspect, "metadata": _metadata(container, path), "track": track_tags(stream),
                 "timecode": next((text for s in (stream, container, *container.streams) for key, text in s.metadata.items()
                                   if key.lower() == "timecode"), ""),
                 "chapters": chapters, "light": light, "extras": extras, "telemetry": telemetry,
                 "sound": tuple(getattr(s.codec_context, "name", "") for s in container.streams if s.type in ("audio", "subtitle")),
                 "attached": tuple(s.metadata.get("filename", "") for s in container.streams if s.type == "attachment"),
                 "interlaced": bool(getattr(first, "interlaced_frame", False)), "slotted": family == "avi" and context.codec.reorder,
                 "size_bytes": path.stat().st_size}
        width, height = first.width - crop[2] - crop[3], first.height - crop[0] - crop[1]
    # all packets
    walk = _scan(path, timed=family not in RAW, fourth=fourth)
    if walk.later:
        facts["extras"] = (*extras, *dict.fromkeys(f"the {kind.lower()} that begins later ({codec})" for kind, codec in walk.later))
    has_alpha = has_alpha and (walk.fourth or not fourth)
    if walk.layered and not kind.alpha:
        remarks.append("its second layer of HEVC (transparency, or the other eye's view) is not read")
    count, last, missing, breaks_off = walk.count, walk.last, 0, ""
    # an AVI's header is written when the recording ends, and not by every program to the frame; it counts dropped frames too
    promised, slack = (samples, 0) if "mp4" in family else (header_frames, header_frames // 100) if family == "avi" else (0, 0)
    usual = int(np.median(np.diff(walk.times))) if family == "avi" and len(walk.times) > 1 else 1          # slots that a frame lasts
    held = max(count + walk.hidden, walk.slots + usual - 1 if family == "avi" else 0)
    if promised - slack > held:
        missing = promised - held
        breaks_off = f"the last {missing} of its {promised - walk.hidden} frames are missing"
    elif duration and last is not None and duration - float(last) > max(0.3, 0.01 * duration):
        missing = max(1, round((duration - float(last)) * float(rates[0] if rates else 25)))
        breaks_off = f"it breaks off after {float(last):.1f} of {duration:.1f} s"
    elif family == "gif" and (found := gif_pictures(path.read_bytes()))[1]:        # its decoder does not tell
        missing, breaks_off = max(1, count - found[0]), f"it is damaged or breaks off behind frame {found[0]}"
    elif walk.goes_on:
        missing, breaks_off = 1, (f"what stands behind its first {count} frames is not read: cut it there; it goes on as another stream "
                                  f"({', '.join(walk.goes_on)}), as where recordings were joined")
    elif ends_early(path, family, walk.stop):
        missing, breaks_off = 1, f"it breaks off within the frame behind its first {count}"
    # the grid of times
    times = walk.times
    rate, constant = _frame_rate(times, tick, rates, walk.clock)
    origin = Fraction(int(times[0])) * tick if len(times) else walk.first or Fraction(0)
    shift = walk.first or Fraction(0)
    if shift < 0 and not walk.clock:                           # an edit list's way to hide what stands before 0
        shift = Fraction(0)
    if walk.early and len(times):
        origin = shift = origin - walk.early / rate
    if constant:
        exact = (origin - shift) * rate.numerator
        tick = Fraction(1, rate.numerator if exact.denominator == 1 else rate.numerator * math.ceil(90000 / rate.numerator))
        walk.hold = round(walk.hold * rate) / rate
    return VideoClip(path=path, width=height if turns % 2 else width, height=width if turns % 2 else height, num_frames=count, rate=rate,
                time_base=tick, constant_rate=constant, has_alpha=has_alpha, origin=origin, shift=shift, joins=walk.joins,
                hold=round(walk.hold / tick), untimed=not len(times), missing=missing, breaks_off=breaks_off, headless=walk.headless,
                remarks=tuple(remarks), **facts)


def _first_frame(container, stream, path: Path) -> av.VideoFrame:
    error = None
    for item in islice(Decoder(container, stream), 300):
        if not isinstance(item, Exception):
            return item
        error = error or item
    if container.format.name == "mpegts" and is_scrambled(path, stream.id):        # of some only the mark is left
        raise encrypted(path)
    why = f" ({reason(error)})" if error else ""
    raise MediaError(f"{path} holds a video stream but not one frame that can be decoded{why}")


def _colors(first: av.VideoFrame, said: ColorTags, codec: str, kind: Layout) -> ColorTags:
    """The complete tags of the first picture: those that the container `said`, which the ISO's format puts first, else its own."""
    full = {1: False, 2: True}.get(int(first.color_range), said.full_range) or first.format.name.startswith("yuvj") or (
        kind.kind == "gray" and int(first.color_range) == 0 and codec not in ("h264", "hevc", "vp9", "av1"))
    own = first.colorspace, *(getattr(first, name, UNSPECIFIED) for name in ("color_primaries", "color_trc"))       # from PyAV 14.3 on
    tags = (one if one != UNSPECIFIED else int(other) or UNSPECIFIED for one, other in zip(dataclasses.astuple(said), own))
    return complete_tags(ColorTags(*tags, full), kind.kind, first.height, first.width)


def _second_layer(data: bytes, context) -> bool:
    """Whether an HEVC packet holds parts of a layer above the first: Apple's transparency, or the other eye's view."""
    return any(data[start] & 1 or data[start + 1] >> 3 for start, end in nal_units(data, context)[1] if start + 1 < min(end, len(data)))


def _side_data(frame: av.VideoFrame) -> dict[str, bytes]:
    """A frame's side data by FFmpeg's names.

    Not through `frame.side_data`: it is kept in the frame and refers back to it, and with PyAV 18 the interpreter can crash when such
    a circle is collected.
    """
    from av.sidedata.sidedata import SideDataContainer
    holder, found = SideDataContainer.__new__(SideDataContainer), {}
    with contextlib.suppress(ValueError):                      # one that is newer than this PyAV, such as EXIF, is the last that it holds
        holder.__init__(frame)
    for data in holder:
        with contextlib.suppress(ValueError):
            found[data.type.name] = bytes(data)
    return found


def _turn(frame: av.VideoFrame) -> tuple[float, bool]:
    """(counter-clockwise degrees, whether left and right are swapped after them) that the frame's display matrix asks for."""
    matrix = struct.unpack("=9i", _side_data(frame).get("DISPLAYMATRIX", b"")[:36] or bytes(36))
    a, b, _, c, d = matrix[:5]
    mirrored = a * d - b * c < 0
    return -math.degrees(math.atan2(b, -a if mirrored else a)), mirrored


def orientation(frame: av.VideoFrame) -> tuple[int, bool]:
    """What is done of it: (counter-clockwise quarter turns, whether left and right are swapped after them)."""
    degrees, mirrored = _turn(frame)
    return round(degrees / 90) % 4, mirrored


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


def _metadata(container, path: Path) -> tuple[tuple[str, str], ...]:
    """The file's metadata, Apple's place, make and model also under the names that every container knows, and an animation's graph.

    FFmpeg writes all names into Matroska in capitals; others have them small, as has ComfyUI, which looks for `workflow`.
    """
    loud = "matroska" in container.format.name
    found = {k.lower() if loud and k.isupper() else k: v for k, v in container.metadata.items() if k.lower() not in _OF_THE_FILE
             and not ("mxf" in container.format.name and _OF_AN_MXF.fullmatch(k))}
    for name, key in (("location", "location.ISO6709"), ("make", "make"), ("model", "model")):
        if APPLE + key in found:
            found.setdefault(name, found[APPLE + key])
    return tuple((found | (graph_of(path) if path.suffix.lower() in (".webp", ".png", ".apng", ".avif") else {})).items())


def _extras(container, video, frame: av.VideoFrame) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """In words: what no output can take over, of streams and of the first frame's side data; streams of data that .mp4 and .mov can."""
    words = [_EXTRAS[name] for name in _side_data(frame) if name in _EXTRAS]
    if abs((degrees := _turn(frame)[0]) - (done := 90 * round(degrees / 90))) > 1:
        words.append(f"its turn by {degrees % 360:.0f} degrees ({done % 360} are applied)")
    others, kept = [s for s in container.streams.video if s != video], []
    if "avis" in container.metadata.get("compatible_brands", ""):                  # a moving AVIF: beside a still or two that stand for it
        alpha = any(s.frames == video.frames > 1 and "gray" in getattr(getattr(s.codec_context, "format", 0), "name", "") for s in others)
        words, others = words + ["the transparency (a stream of its own)"] * alpha, []
    covers = sum(map(is_cover, others))
    words += ["the cover picture"] * bool(covers) + ["further video streams"] * (len(others) > covers)
    for stream in container.streams:
        if is_own_data(stream):
            (kept if is_telemetry(stream) else words).append(f"the data stream {name_of(stream)}")
    return tuple(dict.fromkeys(words)), tuple(kept)


@dataclass
class Walk:
    """What a walk over all packets finds."""

    times: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))       # of the video's, sorted, in ticks; none without times
    count: int = 1                          # the video's packets that are shown
    hidden: int = 0                         # those that an edit list hides or that hold nothing
    headless: int = 0                       # those before the first key frame
    stop: int = 0                           # where the video's last packet ends in the file, in bytes
    slots: int = 0                          # places on the grid of decoding times, dropped frames among them
    first: Fraction | None = None           # first moment of picture or sound in seconds
    last: Fraction | None = None            # last moment of any stream
    hold: Fraction = Fraction(0)            # seconds for which the last picture is shown
    early: int = 0                          # pictures before time 0, of which Matroska tells no time
    clock: bool = False                     # times may be negative because a clock ran over
    joins: tuple[Fraction, ...] = ()        # what `Joins` found
    fourth: bool = False                    # whether any fourth byte is not 0
    layered: bool = False                   # whether HEVC has a second layer
    later: list[tuple[str, str]] = field(default_factory=list)                      # what `later_streams` found
    goes_on: list[str] = field(default_factory=list)           # codecs of another recording's video behind the last packet of this one


def _scan(path: Path, timed: bool, fourth: bool = False) -> Walk:
    """Walk over the packets of all streams. Without `timed` their times are not believed; `fourth`: every fourth byte is looked at."""
    walk, times, untimed, keyed = Walk(), [], 0, False
    with contextlib.closing(open_container(path)) as container:
        video = video_stream(container, path)
        # all of them: the container's duration is that of its longest stream, which subtitles or another video may be
        streams = [s for s in container.streams if s.type in ("audio", "subtitle", "data") or s.type == "video" and not is_cover(s)]
        ends: dict[int, tuple[int, Fraction]] = {}
        starts: dict[int, Fraction] = {}
        others: dict[int, tuple[int, str]] = {}                # first place of the other videos, and their codecs
        joins = Joins(container, video.index)
        walk.clock = joins.clock
        try:
            for packet in packets_of(container, streams):
                joins.correct(packet)
                index = packet.stream_index
                if container.format.name == "avi":             # it tells when a frame is decoded
                    packet.pts = packet.dts
                if index == video.index:
                    walk.slots, walk.stop = max(walk.slots, (packet.dts or 0) + 1), max(walk.stop, (packet.pos or 0) + packet.size)
                    if packet.size and not walk.headless and not keyed and video.codec_context.name == "hevc":
                        walk.layered = _second_layer(bytes(packet), video.codec_context)
                    keyed = keyed or packet.is_keyframe
                    walk.headless += bool(packet.size) and not keyed
                    if fourth and not walk.fourth:
                        walk.fourth = bool(np.frombuffer(packet, np.uint8)[3::4].any())
                elif packet.size and packet.stream.type == "video":
                    others.setdefault(index, (packet.pos or 0, name_of(packet.stream)))
                if not packet.size or packet.is_discard:       # an empty one with a time stands for a frame that was dropped
                    walk.hidden += index == video.index and (packet.size > 0 or packet.dts is not None)
                    continue
                if packet.pts is None:
                    untimed += index == video.index
                    walk.early += index == video.index and not walk.clock and bool(walk.early or not times)
                    continue
                if index == video.index:
                    times.append(packet.pts)
                end = packet.pts + (packet.duration or 0)
                if index not in ends or end > ends[index][0]:
                    ends[index] = (end, packet.time_base)
                if index == video.index or packet.stream.type == "audio" and index not in starts:
                    starts[index] = min(packet.pts * packet.time_base, starts.get(index, packet.pts * packet.time_base))
        except av.FFmpegError:
            pass                                               # the reader will meet the same place and report it
        walk.later, shown = later_streams(container), ends.get(video.index)
        behind = [codec for kind, codec in walk.later if kind == "Video" and walk.stop < 0.95 * path.stat().st_size]
        walk.goes_on = behind + [codec for place, codec in others.values() if joins.clock and place >= walk.stop]
    walk.count, walk.joins, walk.headless = max(1, len(times) + untimed), tuple(joins.found), walk.headless if keyed else 0
    if timed and untimed <= len(times):
        walk.times = np.sort(np.asarray(times, np.int64))
        walk.first = min(starts.values(), default=None)
        walk.last = max((end * base for end, base in ends.values()), default=None)
        walk.hold = (shown[0] - int(walk.times[-1])) * shown[1] if times else walk.hold
    return walk


def _frame_rate(times: np.ndarray, tick: Fraction, claimed: Sequence[Fraction], clock: bool = False) -> tuple[Fraction, bool]:
    """(frame rate, whether all times lie on its grid): the first claimed or standard rate that explains the times to within one
    tick. Places on the grid may be empty (dropped frames), but not most of them: every time lies on the time base's own grid.

    `clock`: not every picture of such a stream has a time; FFmpeg counts on from those that have, in whole ticks.
    """
    default = claimed[0] if claimed else Fraction(25)
    if len(times) < 2 or times[-1] <= times[0]:
        return default, True
    mean = Fraction(int(times[-1] - times[0]), len(times) - 1) * tick
    near = sorted((r for r in STANDARD_RATES if abs(r * mean - 1) < Fraction(1, 100)), key=lambda r: abs(r * mean - 1))
    seconds = (times - times[0]).astype(np.float64) * float(tick)
    # what FFmpeg has made of a frame's duration in nanoseconds (19001/317) is a camera's rate;
    # what it has made of rounded times (983/41, 10000/417) comes behind what cameras have
    claimed = [next((s for s in STANDARD_RATES if abs(r / s - 1) < 1e-6), r) for r in claimed]
    odd = [r for r in claimed if 1000 % r.denominator and r.denominator != 1001]
    usual = [r for r in claimed if r not in odd]
    one, loose = 1.01 * float(tick), {r: 0.02 / float(r) for r in usual if clock}
    for rate, slack in [*((r, one) for r in (*usual, *near)), *loose.items(),      # FFmpeg's fractions have 32 bits
                        *((r, one) for r in (*odd, (1 / mean).limit_denominator(100_000)))]:
        numbers = np.rint(seconds * float(rate))
        off = np.abs(seconds - numbers / float(rate)).max()
        steps = np.diff(numbers)
        if steps.min() > 0 and np.median(steps) <= 2 and (off < 1e-6 or off < slack and tick * rate < Fraction(1, 5)):
            return rate, True
    return (1 / mean).limit_denominator(1001), False


def ends_early(path: Path, family: str, stop: int) -> bool:
    """Whether the last bytes of a file, of the format that FFmpeg calls `family`, are the beginning of something longer: FFmpeg passes
    over the frame in which one ends without a word. `stop`: where the video's last packet ends, in bytes.
    """
    names, size = set(family.split(",")), path.stat().st_size
    with path.open("rb") as file:
        if "matroska" in names:
            return _matroska(file, size)
        if "mpegts" in names:
            return _transport_stream(file, size)
        if "rm" in names:
            return _chunks(file, size)
        if "yuv4mpegpipe" in names:                            # a frame's head and nothing behind it is the same
            file.seek(stop)
            return file.read(5) == b"FRAME"
    return "dv" in names and stop > size


def _matroska(file, size: int) -> bool:
    """Elements: a number, a length, content; a live recording does not know the length of its outer ones."""
    place = 0
    while place < size:
        file.seek(place)
        head = file.read(12)
        name = 9 - head[0].bit_length()                        # bytes of the number; as many zeros stand in front of its first one
        if name > 4 or len(head) <= name:
            return False
        count = 9 - head[name].bit_length()
        digits = head[name:name + count]
        if count > 8 or len(digits) < count:
            return count <= 8
        length = int.from_bytes(digits, "big") & (1 << 7 * count) - 1
        place += name + count
        if length != (1 << 7 * count) - 1:
            place += length
            if int.from_bytes(head[:name], "big") == _SEGMENT:
                break
    return place > size


def _transport_stream(file, size: int) -> bool:
    """Packets of one length, each of which begins with the letter G; cameras put a time of 4 bytes in front."""
    head = file.read(5 * 204)
    for length in (188, 192, 204):
        for start in range(min(length, len(head))):
            if head[start::length][:4] == b"GGGG":
                rest = (size - start) % length
                file.seek(-rest, os.SEEK_END)
                return 0 < rest < 188 and file.read(1) == b"G"         # behind 188 bytes stand sums, or the time of a next one
    return False


def _chunks(file, size: int) -> bool:
    """RealMedia: four letters, the chunk's length, content. FFmpeg says 10 bytes too many."""
    place = 0
    while place < size:
        file.seek(place)
        head = file.read(8)
        length = int.from_bytes(head[4:], "big")
        if len(head) < 8 or length < 8 or not head[:1].isascii():
            return False
        place += length
    return place > size + 10
