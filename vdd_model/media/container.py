"""Files opened with PyAV: failures in one sentence, the video stream and its decoder, times that run on where files were joined."""
from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import threading
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import av.logging
import numpy as np
from av.codec.context import Flags
from av.container import OutputContainer
from av.stream import Disposition
from PIL import ImageSequence
from PIL.WebPImagePlugin import WebPImageFile

from .clip import MediaError
from .pixel_formats import CHROMA

# formats that ffmpeg "plays" but that are text or sound, never a clip
NOT_VIDEO = {"tty", "bin", "adf", "idf", "xbin", "srt", "webvtt", "ass", "lrc", "microdvd", "txt", "ffmetadata", "data", "concat"}
# cameras' raw pictures: FFmpeg takes the small preview in them, or what each sensor cell saw, for the picture
RAW = {".dng", ".cr2", ".cr3", ".nef", ".nrw", ".arw", ".srf", ".raf", ".rw2", ".orf", ".pef", ".srw", ".3fr", ".iiq"}
_TRACK = ("language", "title", "handler_name", "creation_time")
TRIED = 1000                                                  # packets in which every stream's first ones are looked for


def open_container(path: Path):
    """`av.open` for reading, with every failure turned into one MediaError sentence."""
    for found, what in ((not path.exists(), "does not exist"), (path.is_dir(), "is a folder, not a video file"),
                        (not path.is_file(), "is a pipe or a device; clips are read more than once, so save it to a file first"),
                        (path.is_file() and path.stat().st_size == 0, "is empty (0 bytes)")):
        if found:
            raise MediaError(f"{path} {what}")
    if path.suffix.lower() in RAW:
        raise raw_picture(path)
    if _is_encrypted(path):
        raise encrypted(path)
    try:
        source = io.BytesIO(_webp(path, path.stat().st_mtime_ns)) if path.suffix.lower() == ".webp" else os.path.abspath(path)
        container = av.open(source, metadata_errors="replace")                     # as a mere name it would take 12:30.mp4 for an address
    except PermissionError:
        raise MediaError(f"{path} may not be read (permission denied)") from None
    except av.EOFError:
        raise MediaError(f"{path} ends behind its header and holds not one frame") from None
    except (av.FFmpegError, OSError, ValueError, SyntaxError, EOFError) as error:
        raise MediaError(f"{path} is not a video that can be read, or its header is missing ({reason(error)}); if a player opens it, "
                         "convert it first, e.g. with ffmpeg") from error
    if set(container.format.name.split(",")) & NOT_VIDEO:
        container.close()
        raise MediaError(f"{path} is not a video (it looks like {container.format.long_name or container.format.name})")
    return container


@functools.lru_cache(maxsize=1)
def _webp(path: Path, _changed: int) -> bytes:
    """An animated WebP, which FFmpeg does not read, as a .mov of PNG pictures."""
    data, time = io.BytesIO(), 0
    with WebPImageFile(path) as picture, av.open(data, "w", format="mov") as out:
        stream = out.add_stream("png", rate=25, options={"compression_level": "1"})
        stream.width, stream.height, stream.pix_fmt = *picture.size, {"RGBA": "rgba"}.get(picture.mode, "rgb24")
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for shown in ImageSequence.Iterator(picture):
            frame = av.VideoFrame.from_ndarray(np.asarray(shown), stream.pix_fmt)
            frame.pts, held = time, shown.info.get("duration") or 100          # as browsers do
            for packet in stream.encode(frame):
                packet.duration, time = held, time + held
                out.mux(packet)
    return data.getvalue()


def raw_picture(path: str | Path) -> MediaError:
    """What is said of what a sensor saw."""
    return MediaError(f"{path} is a camera's raw picture; develop it first, with its maker's program, darktable or RawTherapee, and save "
                      "it as TIFF or PNG")


def encrypted(path: Path) -> MediaError:
    """What is said of a file that nobody reads without its key."""
    return MediaError(f"{path} is encrypted (as by a shop, a station or a streaming service); only a player that has its key can show it")


def is_scrambled(path: Path, number: int) -> bool:
    """Whether most of the packets of a transport stream that stand at its beginning say so. `number`: the video's."""
    heads = [re.escape(bytes([flags << 5 | number >> 8, number & 255])) for flags in range(8)]
    with path.open("rb") as file:                              # a packet: G, flags and the number, two bits for it
        found = re.findall(b"G(?:" + b"|".join(heads) + b")(.)", file.read(1 << 20), re.DOTALL)
    return 2 * sum(byte[0] > 63 for byte in found) > len(found)


def _is_encrypted(path: Path) -> bool:
    """Whether the head of an .mp4 or .mov says that its video is encrypted (Common Encryption, FairPlay)."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        place = 0
        while len(box := file.read(16)) >= 8 and box[4:8].isalnum():
            length = int.from_bytes(box[8:] if box[:4] == bytes(3) + b"\1" else box[:4], "big")
            if box[4:8] == b"moov":
                head = box + file.read(min(length, 1 << 26))      # a damaged file says any
                return any(kind in head for kind in (b"encv", b"drmi")) and b"sinf" in head and b"schm" in head
            place += max(length, 8)
            file.seek(place)
    return False


def packets_of(container, streams) -> Iterator[av.Packet]:
    """The packets of one or several streams, and an empty last one."""
    try:
        yield from container.demux(streams)
    except IndexError:                                         # PyAV's, where another stream has begun behind the first megabytes
        yield av.Packet()


def later_streams(container) -> list[tuple[str, str]]:
    """(kind, codec) of streams that have begun while the file was read: PyAV does not show them."""
    found = re.findall(r"^  Stream #0:(\d+)\b.*?: (Video|Audio|Subtitle): (\w+)", _dump(container), re.MULTILINE)
    return [(kind, codec) for index, kind, codec in found if int(index) >= len(container.streams)]


def reason(error: BaseException) -> str:
    """What went wrong, as the system or FFmpeg says it."""
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).rstrip(".")


def is_cover(stream) -> bool:
    """Whether the stream is the picture on the cover, not a clip."""
    return Disposition.attached_pic in stream.disposition


def is_own_data(stream) -> bool:
    """Whether it is a stream of data, and neither the time code nor the text of chapters, which .mov keeps in streams too."""
    written = "all" if stream.metadata.get("handler_name") == "SubtitleHandler" else ""           # before PyAV 17
    chapters = getattr(getattr(stream, "discard", None), "name", written) == "all"
    return stream.type == "data" and not chapters and not any(key.lower() == "timecode" for key in stream.metadata)


def is_telemetry(stream) -> bool:
    """Whether it is data whose coding FFmpeg can name in another file too: a GoPro's place, speed and exposure (`gpmd`)."""
    return is_own_data(stream) and stream.name == "bin_data" and hasattr(OutputContainer, "add_attachment")      # PyAV 16: else it crashes


def name_of(stream) -> str:
    """A stream's codec; what a stream of data calls itself."""
    if stream.type == "data":
        return stream.metadata.get("handler_name", "").strip() or str(stream.index)
    return stream.codec_context.name if stream.codec_context else "of an unknown kind"


def video_stream(container, path: Path):
    """The file's clip, its decoder set up: no cover, nothing that FFmpeg does not know, no still beside a clip; of several the one that
    the file marks as its default, then the first. Raises MediaError.
    """
    known = [s for s in container.streams.video if s.codec_context is not None]
    clips = [s for s in known if not is_cover(s)]
    if not clips:
        if strange := [s for s in container.streams.video if s.codec_context is None]:
            name = re.search(r"Video: .*?(\(.{4}) / 0x", printed(container, strange[0]))     # four letters by which the file calls it
            raise MediaError(f"{path} holds video in a coding that FFmpeg does not know{f' {name[1]})' if name else ''}; "
                             "convert it first, with the program or the camera maker's tool that it comes from")
        raise MediaError(f"{path} has no video in it" + (", only sound" if container.streams.audio else ""))
    if len(clips) > 1:
        still = _stills(path, [s.index for s in clips])
        clips.sort(key=lambda s: (s.index in still, Disposition.default not in s.disposition, s.index))
    # not frame by frame: several frames are then under way at a damaged end, where PyAV gives up all that follow the first error
    clips[0].thread_type = "SLICE"
    clips[0].codec_context.flags |= Flags.unaligned            # else a crop at the left is taken only as far as memory likes it
    return clips[0]


def _stills(path: Path, streams: Sequence[int]) -> set[int]:
    """Those of several video streams that hold a single picture, as far as the file's first packets tell."""
    count = dict.fromkeys(streams, 0)
    with contextlib.closing(open_container(path)) as container, contextlib.suppress(av.FFmpegError):
        for packet in islice(packets_of(container, [container.streams[i] for i in streams]), TRIED):
            count[packet.stream_index] += packet.size > 0
            if min(count.values()) > 1:
                break
    return {i for i in streams if count[i] < 2}


_dumping = threading.Lock()


def _dump(container) -> str:
    """What FFmpeg prints of a file."""
    with _dumping, av.logging.Capture(False):                  # what other threads' decoders say meanwhile is nobody's business
        level = av.logging.get_level()
        try:
            av.logging.set_level(av.logging.VERBOSE)
            av.logging.set_libav_level(av.logging.VERBOSE)
            return container.dumps_format()
        finally:
            av.logging.set_libav_level(av.logging.INFO)
            av.logging.set_level(level)


def printed(container, stream) -> str:
    """What FFmpeg prints of a stream. It tells some things that PyAV has no name for, such as a crop."""
    found = re.search(rf"^  Stream #0:{stream.index}\b.*?(?=^  Stream #|\Z)", _dump(container), re.MULTILINE | re.DOTALL)
    return found[0] if found else ""


def presentation(container, stream) -> tuple[tuple[int, int, int, int], str]:
    """(rows and columns that the container has left away at top, bottom, left, right; where 4:2:0's chroma lies)."""
    text = printed(container, stream)
    found = re.search(r"^\s+Frame Cropping: (\d+)/(\d+)/(\d+)/(\d+)\s*$", text, re.MULTILINE | re.IGNORECASE)
    left, right, top, bottom = map(int, found.groups()) if found else (0, 0, 0, 0)
    place = re.search(rf"Video: .*?\w\([^)]*\b({'|'.join(CHROMA)})\)", text.partition("\n")[0])
    return (top, bottom, left, right), place[1] if place else "center" if stream.codec_context.name in ("mjpeg", "webp") else "left"


def track_tags(stream) -> tuple[tuple[str, str], ...]:
    """What a stream says of itself and another file can take over. FFmpeg writes a title into .mp4 and reads it as a name."""
    found = {"title": stream.metadata.get("name"), **{key: stream.metadata.get(key) for key in _TRACK if key in stream.metadata}}
    found["language"] = {"sve": "swe", "hr ": "hrv", "sr ": "srp"}.get(found.get("language"), found.get("language"))       # as .mov says it
    return tuple((key, value) for key, value in found.items() if value)


def decoder_of(stream):
    """The context that decodes the stream's packets. VP8 and VP9 carry transparency beside the picture; only libvpx decodes it."""
    name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name)
    if name and stream.metadata.get("alpha_mode") == "1" and name in av.codecs_available:
        return av.CodecContext.create(name, "r")
    return stream.codec_context


class Joins:
    """Puts the times of transport and program streams that were joined by copying behind one another, as players do.

    At every place where the times of a stream step back by more than a quarter of a second, the next of `found` is added from there on.
    The picture, stream `leader`, sets them when the file is walked over for the first time; the sound keeps its distance to it.
    """

    def __init__(self, container, leader: int, found: Sequence[Fraction] = ()):
        self.found = list(found)
        self.clock = bool({"mpegts", "mpeg"} & set(container.format.name.split(",")))        # that ran before, and runs over
        self._leader = leader
        self._streams: dict[int, tuple[int, Fraction, Fraction]] = {}          # (places passed, last time, step) in seconds

    def correct(self, packet: av.Packet) -> bool:
        """Shift the packet's times; packets of a stream have to come in their order. Returns whether one of the places lies before it."""
        if not self.clock or packet.dts is None:
            return False
        time = packet.dts * packet.time_base
        passed, last, step = self._streams.get(packet.stream_index, (0, None, Fraction(0)))
        offset = self.found[passed - 1] if passed else Fraction(0)
        back = last is not None and time + offset < last - Fraction(1, 4)
        if back:
            if passed == len(self.found) and packet.stream_index == self._leader:
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
        return back
