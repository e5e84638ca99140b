"""Write video: the choice of codec, pixel format and colour tags, segments of packets, and their lossless joining with the sound."""
from __future__ import annotations

import contextlib
import errno
import heapq
import io
import os
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch

from .clip import Clip, MediaError
from .container import Joins, open_container, reason
from .pixel_formats import BT709, BT2020, RGB, SAME_DEPTH, SMPTE170M, UNSPECIFIED, ColorTags, from_rgb
from .probe import APPLE

VIDEO_SUFFIXES = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".wmv", ".flv", ".gif",
                  ".mxf", ".3gp", ".3g2", ".ogv", ".h264", ".hevc", ".264", ".265", ".vob", ".nut", ".apng", ".y4m", ".m2t", ".m2v",
                  ".dv", ".qt", ".asf", ".ivf"}
CONTAINERS = {"h264": {".mp4", ".mov", ".mkv", ".m4v"}, "hevc": {".mp4", ".mov", ".mkv", ".m4v"}, "prores": {".mov", ".mkv"},
              "ffv1": {".mkv"}}
MUXERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
ENCODERS = {"h264": "libx264", "hevc": "libx265", "prores": "prores_ks", "ffv1": "ffv1"}
_HEVC_WIDTH, _HEVC_HEIGHT = 64, 16                             # below, libx265 writes beyond its buffers, or refuses to start
PRORES_PROFILES = ("proxy", "lt", "standard", "hq", "4444", "4444xq")
_TRIED = 1000                                                  # packets in which every stream's first ones are looked for
_STREAM_METADATA = ("language", "title", "handler_name", "creation_time")
_GLOBAL_HEADER = 1 << 22                                       # AV_CODEC_FLAG_GLOBAL_HEADER: the same header for every segment


@dataclass(frozen=True)
class OutputOptions:
    """How to write. `quality` is the CRF of h264 (0-51) and hevc (0-51), or 0-5 for ProRes' profiles proxy ... 4444xq."""

    codec: str = "auto"
    quality: int | None = None
    preset: str = "medium"
    bit_depth: int | None = None            # 8, 10 or, for PNG, 16; None follows the input
    chroma: int | None = None               # 420, 422, 444; None: 420, 444 where a side is odd or for ffv1, what prores' profile has
    audio: bool = True


def without_effect(options: OutputOptions, codec: str) -> list[str]:
    """A note for every option that is set and means nothing to `codec`."""
    given = {"--quality": options.quality is not None and codec in ("ffv1", "png"), "--chroma": options.chroma and codec == "png",
             "--preset": options.preset != OutputOptions.preset and codec not in ("h264", "hevc")}
    notes = [f"{codec} has no use for {name}" for name, unused in given.items() if unused]
    return notes + ["PNG holds 8 or 16 bits a value: 16 are written"] * (codec == "png" and options.bit_depth == 10)


@dataclass(frozen=True)
class Encoding:
    """One video stream to be written: everything an encoder has to be told. Two encoders made from the same one agree in their
    headers, so packets of both can follow each other in one file.
    """

    codec: str
    width: int
    height: int
    pix_fmt: str
    rate: Fraction
    time_base: Fraction
    color: ColorTags
    gray: bool
    alpha: bool
    pixel_aspect: Fraction
    options: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()

    @property
    def intra(self) -> bool:
        """Whether every frame stands alone, so that segments cost nothing."""
        return self.codec in ("prores", "ffv1")


def choose_codec(clip: Clip, suffix: str, options: OutputOptions) -> str:
    """The codec for an output file ending in `suffix`. Raises MediaError when codec and container do not go together."""
    if options.codec == "auto":
        if suffix == ".mkv" and clip.has_alpha:
            return "ffv1"
        if suffix == ".mov" and (clip.has_alpha or clip.codec == "prores"):
            return "prores"
        return "h264" if (options.bit_depth or clip.bit_depth) <= 8 or _too_small_for_hevc(clip) else "hevc"
    if suffix not in CONTAINERS[options.codec]:
        raise MediaError(f"{options.codec} cannot be stored in a {suffix or 'nameless'} file; "
                         f"use {' or '.join(sorted(CONTAINERS[options.codec]))}, or another --codec")
    if options.codec == "hevc" and _too_small_for_hevc(clip):
        raise MediaError(f"{clip.width}x{clip.height} is too small for hevc, whose encoder needs {_HEVC_WIDTH} pixels across and "
                         f"{_HEVC_HEIGHT} down; use another --codec")
    return options.codec


def _too_small_for_hevc(clip: Clip) -> bool:
    return clip.width < _HEVC_WIDTH or clip.height < _HEVC_HEIGHT


def choose_encoding(clip: Clip, path: Path, options: OutputOptions) -> Encoding:
    """How `clip` is to be written to the video file `path`. Raises MediaError for what cannot be done."""
    suffix = path.suffix.lower()
    if suffix not in {s for group in CONTAINERS.values() for s in group}:
        raise MediaError(f"{path}: files ending in {suffix or 'nothing'} cannot be written; "
                         "use .mp4, .mov or .mkv, or --codec png for a folder")
    codec = choose_codec(clip, suffix, options)
    notes = without_effect(options, codec)
    odd = clip.width % 2 or clip.height % 2
    chroma = options.chroma or (422 if codec == "prores" else 444 if odd or codec == "ffv1" else 420)
    if chroma != 444 and (odd and codec in ("h264", "hevc") or clip.width % 2 and codec == "ffv1"):
        raise MediaError(f"{clip.width}x{clip.height} has an odd side and cannot be stored as {':'.join(str(chroma))} in {codec}; "
                         "leave --chroma away")
    if odd and not options.chroma and codec in ("h264", "hevc"):
        notes.append(f"{clip.width}x{clip.height} has an odd side, so colour is stored at full resolution (4:4:4), "
                     "which some players do not show")
    finer = re.match(r"yuv[aj]?(42|44)(2|4)p", SAME_DEPTH.get(clip.pix_fmt, clip.pix_fmt))
    if finer and chroma == 420 and not options.chroma and not clip.gray:
        notes.append(f"its colour is {':'.join(finer[1] + finer[2])} and is stored as 4:2:0, which every player shows; "
                     f"--chroma {finer[1]}{finer[2]} keeps it")
    depth = options.bit_depth or (10 if clip.bit_depth > 8 else 8)
    if options.codec == "auto" and codec == "h264" and depth > 8:
        notes.append(f"{clip.width}x{clip.height} is too small for hevc, so it is stored as h264 with {depth} bits, "
                     "which some players do not show")
    alpha = clip.has_alpha and codec in ("prores", "ffv1")
    if clip.has_alpha and not alpha:
        notes.append(f"{codec} has no transparency, so it is dropped; --codec prores (.mov), ffv1 (.mkv) or png keep it")
    encoder: dict[str, str] = {}
    if codec == "prores":
        full_chroma = options.chroma == 444 or not options.chroma and finer and finer[2] == "4"
        profile = options.quality if options.quality is not None else 4 if alpha or full_chroma else 3
        if not 0 <= profile <= 5:
            raise MediaError(f"--quality {profile} is not a ProRes profile; use 0 (proxy) to 5 (4444xq)")
        if alpha and profile < 4:
            raise MediaError(f"ProRes {PRORES_PROFILES[profile]} has no transparency; use --quality 4 or 5")
        own = 444 if profile >= 4 else 422
        if options.chroma not in (None, own) or options.bit_depth not in (None, 10):
            raise MediaError(f"ProRes {PRORES_PROFILES[profile]} stores {':'.join(str(own))} with 10 bits; leave --chroma and --bit-depth "
                             "away, or choose another --quality or --codec")
        pix_fmt = "yuva444p10le" if alpha else f"yuv{own}p10le"
        encoder = {"profile": str(profile), "vendor": "apl0"}
        if alpha:
            encoder["alpha_bits"] = "16"
    elif codec == "ffv1":
        if options.bit_depth is None and clip.bit_depth > 10:
            depth = 12 if clip.bit_depth <= 12 and not (alpha and chroma == 420) else 16
        depth = 8 if depth <= 8 else max(10, depth)
        pix_fmt = f"yuv{'a' if alpha else ''}{chroma}p" + ("" if depth == 8 else f"{depth}le")
        encoder = {"level": "3", "g": "1", "slices": "4", "slicecrc": "1"}
    else:
        if depth not in (8, 10):
            raise MediaError(f"{codec} stores 8 or 10 bits, not {depth}")
        if clip.bit_depth > depth and options.bit_depth is None:
            notes.append(f"its {clip.bit_depth} bits are stored as {depth}; --codec ffv1 (.mkv) or png keep them")
        pix_fmt = f"yuv{chroma}p" + ("" if depth == 8 else "10le")
        crf = options.quality if options.quality is not None else 16
        if not 0 <= crf <= 51:
            raise MediaError(f"--quality {crf} is outside 0 (largest file) to 51 (smallest) for {codec}")
        encoder = {"crf": str(crf), "preset": options.preset}
        if codec == "hevc":
            encoder["x265-params"] = ":".join(["log-level=error", *filter(None, [clip.light])])
        elif torch.backends.cpu.get_cpu_capability() == "AVX512":
            # x264's AVX-512 code for macroblock trees reads memory that was never written, so two runs differ; AVX2's does not
            encoder["x264-params"] = "asm=avx2"
    lacking = list(clip.extras)
    if clip.light and codec != "hevc":
        lacking.insert(0, "HDR10's mastering display and light levels (hevc takes them)")
    if clip.attached and suffix != ".mkv":
        lacking.append("attached files (.mkv takes them)")
    if lacking:
        notes.append("not carried over: " + ", ".join(lacking))
    return Encoding(codec, clip.width, clip.height, pix_fmt, clip.rate, clip.time_base, output_tags(clip, codec), clip.gray, alpha,
                    clip.pixel_aspect, tuple(encoder.items()), tuple(notes))


def output_tags(clip: Clip, codec: str) -> ColorTags:
    """The tags to write: the input's own where it is Y'CbCr, with the matrix that was assumed spelled out; BT.709 for RGB."""
    tags = clip.color
    if tags.matrix == RGB or clip.is_sequence or clip.gray and tags.matrix == UNSPECIFIED:
        known = {p for p in (tags.primaries, tags.transfer) if p != UNSPECIFIED}
        primaries, transfer = (tags.primaries, tags.transfer) if len(known) else (BT709, BT709)
        return ColorTags(BT2020 if primaries == BT2020 else BT709, primaries, transfer, False)
    usual = BT709 if tags.matrix == BT709 else SMPTE170M if tags.matrix in (5, 6) else UNSPECIFIED
    return ColorTags(tags.matrix, tags.primaries if tags.primaries != UNSPECIFIED else usual,
                     tags.transfer if tags.transfer != UNSPECIFIED else usual,
                     tags.full_range and codec != "prores")    # ProRes cannot say that it is full range


def configure(context, encoding: Encoding) -> None:
    """Set up an encoder's context (a stream's or one of its own)."""
    context.width, context.height, context.pix_fmt = encoding.width, encoding.height, encoding.pix_fmt
    context.time_base, context.framerate = encoding.time_base, encoding.rate
    context.sample_aspect_ratio = encoding.pixel_aspect
    context.color_range = 2 if encoding.color.full_range else 1
    context.colorspace = encoding.color.matrix
    context.color_primaries, context.color_trc = encoding.color.primaries, encoding.color.transfer
    context.flags |= _GLOBAL_HEADER
    context.options = dict(encoding.options)
    if encoding.codec in ("prores", "ffv1"):
        context.thread_type = "SLICE"


class Packet(NamedTuple):
    """An encoded picture. Times are in the encoding's time base."""

    pts: int
    duration: int
    key: bool
    data: bytes


class SegmentEncoder:
    """Encodes one closed run of frames; `frame` takes them in order, `finish` returns all packets in decoding order.

    Raises MediaError for what the encoder refuses, such as frames that are too large for it.
    """

    def __init__(self, encoding: Encoding):
        self.encoding = encoding
        self.context = av.CodecContext.create(ENCODERS[encoding.codec], "w")
        configure(self.context, encoding)
        try:
            self.context.open()
        except av.error.MemoryError:
            raise
        except av.FFmpegError as error:
            raise MediaError(f"{encoding.codec} cannot store frames of {encoding.width}x{encoding.height} pixels as {encoding.pix_fmt} "
                             f"({reason(error)}); use another --codec") from None
        self.durations: dict[int, int] = {}
        self.packets: list[Packet] = []

    def frame(self, picture: av.VideoFrame, pts: int, duration: int) -> None:
        """Encode one picture."""
        picture.pts, picture.time_base = pts, self.encoding.time_base
        for name, value in (("color_primaries", self.encoding.color.primaries), ("color_trc", self.encoding.color.transfer)):
            if hasattr(picture, name):                         # some encoders look at the pictures' tags, not at the stream's
                setattr(picture, name, value)
        self.durations[pts] = duration
        self._keep(self.context.encode(picture))

    def _keep(self, packets) -> None:
        for packet in packets:
            self.packets.append(Packet(packet.pts, self.durations.get(packet.pts, 1), packet.is_keyframe, bytes(packet)))

    def finish(self) -> list[Packet]:
        """Flush and return the packets of the segment."""
        self._keep(self.context.encode(None))
        return self.packets


def picture_of(rgb: np.ndarray, alpha: np.ndarray | None, encoding: Encoding) -> av.VideoFrame:
    """(H,W,3) float32 RGB in [0,1] -> the picture as it goes into the encoder."""
    return from_rgb(rgb, alpha if encoding.alpha else None, encoding.pix_fmt, encoding.color, gray=encoding.gray)


def picture_bytes(picture: av.VideoFrame) -> bytes:
    """The picture's planes, to be spooled to disk."""
    return b"".join(bytes(plane) for plane in picture.planes)


def picture_from_bytes(data: bytes, encoding: Encoding) -> av.VideoFrame:
    """Inverse of `picture_bytes`."""
    picture = av.VideoFrame(encoding.width, encoding.height, encoding.pix_fmt)
    position = 0
    for plane in picture.planes:
        plane.update(data[position: position + plane.buffer_size])
        position += plane.buffer_size
    picture.colorspace, picture.color_range = encoding.color.matrix, 2 if encoding.color.full_range else 1
    return picture


# A segment in the packet file: magic, its number, its frames, its packets, the bytes that follow; then the packets.
_SEGMENT = struct.Struct("<4sIIIQ")
_PACKET = struct.Struct("<qqB3xI")


def segment_bytes(number: int, frames: int, packets: Sequence[Packet]) -> bytes:
    """A segment as it is appended to the packet file."""
    body = io.BytesIO()
    for packet in packets:
        body.write(_PACKET.pack(packet.pts, packet.duration, packet.key, len(packet.data)))
        body.write(packet.data)
    return _SEGMENT.pack(b"VDDS", number, frames, len(packets), body.tell()) + body.getvalue()


def finished_segments(path: Path) -> tuple[int, int, int]:
    """(segments, frames, bytes) of the whole segments at the start of the packet file; what follows was being written."""
    segments = frames = position = 0
    if not path.exists():
        return 0, 0, 0
    size = path.stat().st_size
    with path.open("rb") as file:
        while True:
            head = file.read(_SEGMENT.size)
            if len(head) < _SEGMENT.size:
                break
            magic, number, count, _, length = _SEGMENT.unpack(head)
            if magic != b"VDDS" or number != segments or position + _SEGMENT.size + length > size:
                break
            segments, frames, position = segments + 1, frames + count, position + _SEGMENT.size + length
            file.seek(position)
    return segments, frames, position


def read_segments(paths: Sequence[Path], *, data: bool = True) -> Iterator[list[Packet]]:
    """The packets of the files, segment by segment; without their bytes unless `data`."""
    for path in paths:
        with path.open("rb") as file:
            while head := file.read(_SEGMENT.size):
                packets = []
                for _ in range(_SEGMENT.unpack(head)[3]):
                    pts, duration, key, length = _PACKET.unpack(file.read(_PACKET.size))
                    packets.append(Packet(pts, duration, bool(key), file.read(length) if data else b""))
                    if not data:
                        file.seek(length, 1)
                yield packets


def _reorder_depth(paths: Sequence[Path]) -> int:
    """By how many places a packet may come later in decoding than in presentation order."""
    depth = 0
    for packets in read_segments(paths, data=False):
        rank = {pts: i for i, pts in enumerate(sorted(p.pts for p in packets))}
        depth = max([depth, *(i - rank[p.pts] for i, p in enumerate(packets))])
    return depth


def _with_dts(paths: Sequence[Path], frame: int) -> Iterator[tuple[Packet, int]]:
    """Packets with their decoding times: the presentation times in order, moved back by the reordering depth."""
    depth, clock = _reorder_depth(paths), None
    for packets in read_segments(paths):
        ordered = sorted(p.pts for p in packets)
        if clock is None:
            clock = [ordered[0] - frame * (depth - i) for i in range(depth)]
        clock += ordered
        yield from zip(packets, clock)
        clock = clock[len(packets):]


def join(packet_files: Sequence[Path], encoding: Encoding, target: Path, clip: Clip | None, *, audio: bool = True) -> list[str]:
    """Mux the packets of all segments in these files, and the sound and subtitles of `clip`, into `target`. Nothing is encoded again.

    Returns notes on what could not be carried over. Raises MediaError.
    """
    notes: list[str] = []
    muxer = MUXERS[target.suffix.lower()]
    options = {"movflags": "+faststart"} if muxer in ("mp4", "mov") else {}
    if options and clip and any(key.startswith(APPLE) for key, _ in clip.metadata):
        options["movflags"] += "+use_metadata_tags"            # where Apple's programs look for the place and the day
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(contextlib.closing(av.open(os.path.abspath(target), "w", format=muxer, options=options)))
        stream = output.add_stream(ENCODERS[encoding.codec], rate=encoding.rate)
        configure(stream.codec_context, encoding)
        stream.time_base = encoding.time_base
        if encoding.codec == "hevc" and muxer != "matroska":
            stream.codec_context.codec_tag = "hvc1"            # what Apple's players ask for
        sources = [_video_packets(packet_files, encoding, stream)]
        if clip and clip.metadata:
            output.metadata.update(dict(clip.metadata))
        if clip and clip.timecode:
            stream.metadata["timecode"] = clip.timecode        # in .mov and .mp4 this makes a track of it
        if clip and clip.chapters:
            output.set_chapters([{"id": i, "start": max(0, round(1000 * (start - clip.shift))),
                                  "end": max(0, round(1000 * (end - clip.shift))), "time_base": Fraction(1, 1000),
                                  "metadata": {"title": title} if title else {}} for i, (start, end, title) in enumerate(clip.chapters)])
        if clip and audio and (clip.sound or clip.attached):
            source = stack.enter_context(contextlib.closing(open_container(clip.path)))
            copies, fitting = {}, _fitting(clip.path, muxer)
            for other in source.streams:
                if other.type not in ("audio", "subtitle"):
                    continue
                if other.index not in fitting:
                    notes.append(f"the {other.type} stream {_name(other)} cannot be stored in {target.suffix} and was left out")
                    continue
                copies[other.index] = output.add_stream_from_template(other)
                copies[other.index].metadata.update({k: other.metadata[k] for k in _STREAM_METADATA if other.metadata.get(k)})
                with contextlib.suppress(AttributeError):      # PyAV before 14.2 does not know it
                    copies[other.index].disposition = getattr(other.disposition, "value", other.disposition)
            if muxer == "matroska" and hasattr(output, "add_attachment"):
                for other in (s for s in source.streams if s.type == "attachment"):
                    output.add_attachment(other.metadata.get("filename", "attached"), other.mimetype or "application/octet-stream",
                                          other.data)
            elif muxer == "matroska" and clip.attached:
                notes.append("attached files were left out; PyAV 16 or later takes them over")
            if copies:
                sources.append(_copied_packets(source, copies, clip.shift, Joins(source, -1, clip.joins)))
        try:
            output.start_encoding()
            for _, _, packet in heapq.merge(*sources, key=lambda item: item[0]):
                output.mux_one(packet)
        except (av.FFmpegError, ValueError) as error:
            if len(sources) == 1 or no_room(error):
                raise
            raise MediaError(f"the sound or the subtitles of {clip.path} cannot be put into a {target.suffix} file ({error}); the pictures "
                             "are finished and kept: run again with --resume --no-audio") from error
    return notes


def _name(stream) -> str:
    return stream.codec_context.name if stream.codec_context else "of an unknown kind"


def _fitting(path: Path, muxer: str) -> set[int]:
    """Numbers of the audio and subtitle streams that the container takes: the first packets of each are put into one in memory, since
    some containers refuse only then what they list as supported.
    """
    with contextlib.closing(open_container(path)) as source:
        streams = {s.index: s for s in source.streams if s.type in ("audio", "subtitle") and s.codec_context}
        first: dict[int, list[av.Packet]] = {index: [] for index in streams}
        with contextlib.suppress(av.FFmpegError):
            for packet in islice(source.demux(list(streams.values())), _TRIED if streams else 0):
                if packet.size and packet.dts is not None and len(first[packet.stream_index]) < 3:
                    first[packet.stream_index].append(packet)
                if all(len(packets) == 3 for packets in first.values()):
                    break
        return {index for index, stream in streams.items() if _fits(stream, first[index], muxer)}


def _fits(stream, packets: Sequence[av.Packet], muxer: str) -> bool:
    try:
        trial = av.open(io.BytesIO(), "w", format=muxer)
        copy = trial.add_stream_from_template(stream)
        trial.start_encoding()
        for packet in packets:
            packet.stream = copy
            trial.mux_one(packet)
        trial.close()
    except (av.FFmpegError, ValueError):
        return False
    return True


def unsupported_sound(clip: Clip, path: Path) -> list[str]:
    """Codecs of the clip's audio streams if the container of `path` cannot hold any of them, else nothing."""
    if not clip.sound:
        return []
    fitting = _fitting(clip.path, MUXERS[path.suffix.lower()])
    with contextlib.closing(open_container(clip.path)) as source:
        lacking = [_name(s) for s in source.streams.audio if s.index not in fitting]
        return lacking if len(lacking) == len(source.streams.audio) else []


def _video_packets(packet_files: Sequence[Path], encoding: Encoding, stream) -> Iterator[tuple[Fraction, int, av.Packet]]:
    one = max(1, round(1 / (encoding.rate * encoding.time_base)))
    for item, dts in _with_dts(packet_files, one):
        packet = av.Packet(item.data)
        packet.pts, packet.dts, packet.duration, packet.time_base = item.pts, dts, item.duration, encoding.time_base
        packet.is_keyframe, packet.stream = item.key, stream
        yield dts * encoding.time_base, 0, packet


def _copied_packets(source, copies: dict, shift: Fraction, joins: Joins) -> Iterator[tuple[Fraction, int, av.Packet]]:
    latest: dict[int, int] = {}
    try:
        for packet in source.demux([source.streams[i] for i in copies]):
            if packet.dts is None or not packet.size:
                continue
            joins.correct(packet)
            if packet.stream.type == "audio":                  # no file takes sound that steps back, as where recordings overlap
                if packet.dts < latest.get(packet.stream_index, packet.dts):
                    continue
                latest[packet.stream_index] = packet.dts
            back = round(shift / packet.time_base)
            if packet.pts is not None:
                packet.pts -= back
            packet.dts -= back
            when = packet.dts * packet.time_base
            packet.stream = copies[packet.stream_index]
            yield when, 1, packet
    except av.FFmpegError:
        return                                                 # the source breaks off here; the reader has said so


def no_room(error: BaseException) -> bool:
    """Whether the error means that the disk is full."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False
