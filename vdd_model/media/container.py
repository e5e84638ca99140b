"""Files opened with PyAV: failures in one sentence, the video stream and its decoder, times that run on where files were joined."""
from __future__ import annotations

import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
from av.stream import Disposition

from .clip import MediaError

# formats that ffmpeg "plays" but that are text or sound, never a clip
NOT_VIDEO = {"tty", "bin", "adf", "idf", "xbin", "srt", "webvtt", "ass", "lrc", "microdvd", "txt", "ffmetadata", "data", "concat"}


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
        raise MediaError(f"{path} is not a video that can be read, or its header is missing ({reason(error)}); if a player opens it, "
                         "convert it first, e.g. with ffmpeg") from error
    if set(container.format.name.split(",")) & NOT_VIDEO:
        container.close()
        raise MediaError(f"{path} is not a video (it looks like {container.format.long_name or container.format.name})")
    return container


def reason(error: BaseException) -> str:
    """What went wrong, as the system or FFmpeg says it."""
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).rstrip(".")


def is_cover(stream) -> bool:
    """Whether the stream is the picture on the cover, not a clip."""
    return Disposition.attached_pic in stream.disposition


def video_stream(container, path: Path):
    """The file's first clip. Raises MediaError."""
    for stream in container.streams.video:
        if not is_cover(stream):
            return stream
    raise MediaError(f"{path} has no video in it" + (", only sound" if container.streams.audio else ""))


def decoder_of(stream):
    """The context that decodes the stream's packets. VP8 and VP9 carry transparency beside the picture; only libvpx decodes it."""
    name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name)
    if name and stream.metadata.get("alpha_mode") == "1" and name in av.codecs_available:
        return av.CodecContext.create(name, "r")
    return stream.codec_context


class Joins:
    """Puts the times of transport and program streams that were joined by copying behind one another, as players do.

    At every place where the times of a stream step back by more than a quarter of a second, the next of `found` is added from there on.
    The picture sets them, when the file is walked over for the first time; the sound keeps its distance to it.
    """

    def __init__(self, container, found: Sequence[Fraction] = ()):
        self.found = list(found)
        self._used = bool({"mpegts", "mpeg"} & set(container.format.name.split(",")))
        self._leader = next((s.index for s in container.streams.video if not is_cover(s)), None)
        self._streams: dict[int, tuple[int, Fraction, Fraction]] = {}          # (places passed, last time, step) in seconds

    def correct(self, packet: av.Packet) -> None:
        """Shift the packet's times; packets of a stream have to come in their order."""
        if not self._used or packet.dts is None:
            return
        time = packet.dts * packet.time_base
        passed, last, step = self._streams.get(packet.stream_index, (0, None, Fraction(0)))
        offset = self.found[passed - 1] if passed else Fraction(0)
        if last is not None and time + offset < last - Fraction(1, 4):
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
