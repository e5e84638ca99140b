"""Packets -> pictures (`Decoder`), and how many of them are damaged."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator

import av
import numpy as np

from .clip import VideoClip
from .container import Joins, decoder_of, open_container, video_stream
from .pixel_formats import planes_of

# Decoders that make a whole picture of half a packet without a word: of every encoder in PyAV's wheel one packet was cut and decoded.
# What stands here is put behind each packet for a second decoder: bytes that are no marker, and codes that nearly every table has, so
# that a decoder which reads on makes another picture of them.
_BEHIND = dict.fromkeys(("asv2", "ffvhuff", "hevc", "huffyuv", "msvideo1", "qtrle", "snow", "vp8", "vp9"), b"\x55" * 2048)
# JPEG's tell when they are asked to be strict, and then of a missing end marker too, which many cameras leave away
_STRICT = dict.fromkeys(("amv", "jpegls", "mjpeg"), b"\xff\xd9")
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
        self._pictures = 0
        self._suspects: list[int] = []                         # numbers of the packets that the demuxer calls corrupt

    @property
    def damaged(self) -> int:
        """Pictures so far that hold damage."""
        return max(self._pictures, len(self._suspects))

    def __iter__(self) -> Iterator[av.VideoFrame | Exception]:
        packets, number = self.container.demux(self.stream), 0
        with contextlib.ExitStack() as stack:
            watcher = self._watcher(stack)
            while True:
                try:
                    packet = next(packets)
                except StopIteration:
                    return
                except av.FFmpegError as error:
                    yield error
                    packet = None                              # the file ends here: flush the decoder
                # an empty packet with a time repeats a picture or stands for one that was dropped; it would end the decoder
                if packet is not None and not packet.size and packet.dts is not None:
                    continue
                data = packet if packet is not None and packet.size else None
                number += 1
                if data and self.joins.correct(data):          # the last packets before such a place are whole, and yet called corrupt
                    self._suspects = [n for n in self._suspects if n < number - _NEAR]
                try:
                    pictures = self.decoder.decode(data)
                    if data and data.is_corrupt:
                        self._suspects.append(number)
                except av.EOFError:
                    pictures = []
                except av.FFmpegError as error:
                    yield error
                    pictures = []
                others = self._watch(watcher, data) if watcher else pictures
                strict = others is None and self.decoder.name in _STRICT
                if others is None or len(others) != len(pictures):
                    watcher, others = watcher if strict else None, pictures                # else the two are no longer in step
                for picture, other in zip(pictures, others):
                    self._pictures += bool(strict or getattr(picture, "is_corrupt", False) or picture is not other
                                           and self.decoder.name in _BEHIND and _differ(picture, other))
                    yield picture
                if packet is None:
                    return

    def _watcher(self, stack: contextlib.ExitStack):
        """The decoder that watches over a silent one, or None."""
        context = self.decoder
        if self.clip is None or context is not self.stream.codec_context or context.name not in _BEHIND | _STRICT:
            return None
        if context.name == "hevc" and (context.extradata or b"")[:1] == b"\1":      # lengths stand before its parts, which tell
            return None
        container = stack.enter_context(contextlib.closing(open_container(self.clip.path)))
        watcher = video_stream(container, self.clip.path).codec_context
        if context.name in _STRICT:
            watcher.options = {"err_detect": "explode"}
        return watcher

    def _watch(self, watcher, data: av.Packet | None) -> list[av.VideoFrame] | None:
        packet = None
        if data is not None:
            packet = av.Packet(bytes(data) + (_BEHIND | _STRICT)[self.decoder.name])
            packet.pts, packet.dts, packet.time_base, packet.is_keyframe = data.pts, data.dts, data.time_base, data.is_keyframe
        try:
            return watcher.decode(packet)
        except av.EOFError:
            return []
        except av.FFmpegError:
            return None


def _differ(one: av.VideoFrame, other: av.VideoFrame) -> bool:
    """Whether two decoded pictures are not the same in every value."""
    return any(not np.array_equal(a, b) for a, b in zip(planes_of(one), planes_of(other), strict=True))
