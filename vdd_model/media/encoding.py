"""Write video: the codecs (`CODECS`), what a clip becomes in one of them (`choose_encoding`), its encoder (`open_encoder`), and the
file in which packets are kept while a video is written: in whole segments, one behind the other.
"""
from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import av
import torch

from .clip import MediaError, VideoClip
from .container import reason
from .pixel_formats import BT709, BT2020, RGB, SMPTE170M, UNSPECIFIED, ColorTags, layout

VIDEO_SUFFIXES = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".wmv", ".flv", ".gif",
                  ".mxf", ".3gp", ".3g2", ".ogv", ".h264", ".hevc", ".264", ".265", ".266", ".vob", ".nut", ".apng", ".y4m", ".m2t",
                  ".m2v", ".dv", ".qt", ".asf", ".ivf", ".mjpg", ".mjpeg", ".f4v", ".mod", ".lrv"}
MUXERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
PRORES_PROFILES = ("proxy", "lt", "standard", "hq", "4444", "4444xq")
LOOKAHEAD_BYTES = 2**26  # of frames that x264 looks ahead at, at most its 40: a long clip fills them all, a short one never
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


@dataclass(frozen=True)
class Encoding:
    """One video stream to be written: everything an encoder has to be told. Two encoders made from the same one agree in their
    headers, so packets of both can follow each other in one file.
    """

    codec: str
    clip: VideoClip                         # gives size, times, shape of pixels, and whether it is grey
    pix_fmt: str
    color: ColorTags
    alpha: bool
    options: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()
    chroma: str = "left"                    # where 4:2:0's samples lie

    @property
    def intra(self) -> bool:
        """Whether every frame stands alone, so that segments cost nothing."""
        return CODECS[self.codec].intra


@dataclass(frozen=True)
class Want:
    """What a clip is to be stored as: 420, 422 or 444, bits, whether with alpha; `finer`: the input's own 422 or 444, or ""."""

    clip: VideoClip
    options: OutputOptions
    chroma: int
    depth: int
    alpha: bool
    finer: str


def _x264(want: Want) -> tuple[str, dict[str, str]]:
    encoder, params = _crf(want, "h264"), []
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        # x264's AVX-512 code for macroblock trees reads memory that was never written, so two runs differ; AVX2's does not
        params.append("asm=avx2")
    ahead = max(8, LOOKAHEAD_BYTES // (want.clip.width * want.clip.height * 3))
    if ahead < {"ultrafast": 0, "superfast": 0, "veryfast": 10, "faster": 20, "fast": 30}.get(want.options.preset, 40):
        params.append(f"rc-lookahead={ahead}")
    return _planar(want, want.chroma, want.depth), encoder | ({"x264-params": ":".join(params)} if params else {})


def _x265(want: Want) -> tuple[str, dict[str, str]]:
    params = ":".join(["log-level=error", *filter(None, [want.clip.light])])
    return _planar(want, want.chroma, want.depth), _crf(want, "hevc") | {"x265-params": params}


def _crf(want: Want, codec: str) -> dict[str, str]:
    crf = want.options.quality if want.options.quality is not None else 16
    if want.depth not in (8, 10):
        raise MediaError(f"{codec} stores 8 or 10 bits, not {want.depth}")
    if not 0 <= crf <= 51:
        raise MediaError(f"--quality {crf} is outside 0 (largest file) to 51 (smallest) for {codec}")
    return {"crf": str(crf), "preset": want.options.preset}


def _planar(want: Want, chroma: int, depth: int) -> str:
    return f"yuv{'a' if want.alpha else ''}{chroma}p" + ("" if depth == 8 else f"{depth}le")


def _prores(want: Want) -> tuple[str, dict[str, str]]:
    options = want.options
    full_chroma = options.chroma == 444 or not options.chroma and want.finer == "444"
    profile = options.quality if options.quality is not None else 4 if want.alpha or full_chroma else 3
    if not 0 <= profile <= 5:
        raise MediaError(f"--quality {profile} is not a ProRes profile; use 0 (proxy) to 5 (4444xq)")
    if want.alpha and profile < 4:
        raise MediaError(f"ProRes {PRORES_PROFILES[profile]} has no transparency; use --quality 4 or 5")
    own = 444 if profile >= 4 else 422
    if options.chroma not in (None, own) or options.bit_depth not in (None, 10):
        raise MediaError(f"ProRes {PRORES_PROFILES[profile]} stores {':'.join(str(own))} with 10 bits; leave --chroma and --bit-depth "
                         "away, or choose another --quality or --codec")
    return _planar(want, own, 10), {"profile": str(profile), "vendor": "apl0"} | ({"alpha_bits": "16"} if want.alpha else {})


def _ffv1(want: Want) -> tuple[str, dict[str, str]]:
    bits = want.clip.bit_depth
    depth = 8 if want.depth <= 8 else max(10, want.depth)
    if want.options.bit_depth is None and bits > 10:
        depth = 12 if bits <= 12 and not (want.alpha and want.chroma == 420) else 16
    return _planar(want, want.chroma, depth), {"level": "3", "g": "1", "slices": "4", "slicecrc": "1"}


@dataclass(frozen=True)
class Codec:
    """A codec that is written: FFmpeg's encoder, the files that hold it, what it stores and how it is set up."""

    encoder: str
    containers: tuple[str, ...]
    depths: str                             # in words, for the table of formats
    settings: Callable[[Want], tuple[str, dict[str, str]]] | None = None         # -> pixel format, the encoder's options
    chroma: int = 420
    alpha: bool = False
    intra: bool = False                     # every frame stands alone
    smallest: tuple[int, int] = (1, 1)      # width, height: below, the encoder writes beyond its buffers, or refuses to start
    unused: tuple[str, ...] = ()            # options that mean nothing to it


_CRF_FILES = (".m4v", ".mkv", ".mov", ".mp4")
CODECS = {
    "h264": Codec("libx264", _CRF_FILES, "8, 10", _x264),
    "hevc": Codec("libx265", _CRF_FILES, "8, 10", _x265, smallest=(64, 16)),
    # FFmpeg 7.1.0, in PyAV 14.2, takes the profile for another option of that name and leaves prores_ks its own choice
    "prores": Codec("prores" if av.ffmpeg_version_info == "7.1" else "prores_ks", (".mkv", ".mov"), "10", _prores, 422, alpha=True,
                    intra=True, unused=("--preset",)),
    "ffv1": Codec("ffv1", (".mkv",), "8, 10, 12, 16", _ffv1, 444, alpha=True, intra=True, unused=("--quality", "--preset")),
    "png": Codec("png", (), "8, 16", alpha=True, intra=True, unused=("--quality", "--chroma", "--preset")),
}
CONTAINERS = {name: set(codec.containers) for name, codec in CODECS.items() if codec.containers}


def without_effect(options: OutputOptions, codec: str) -> list[str]:
    """A note for every option that is set and means nothing to `codec`."""
    given = {"--quality": options.quality is not None, "--chroma": options.chroma, "--preset": options.preset != OutputOptions.preset}
    notes = [f"{codec} has no use for {name}" for name in CODECS[codec].unused if given[name]]
    return notes + ["PNG holds 8 or 16 bits a value: 16 are written"] * (codec == "png" and options.bit_depth == 10)


def choose_codec(clip: VideoClip, suffix: str, options: OutputOptions) -> str:
    """The codec for an output file ending in `suffix`. Raises MediaError when codec and container do not go together."""
    small = clip.width < CODECS["hevc"].smallest[0] or clip.height < CODECS["hevc"].smallest[1]
    if options.codec == "auto":
        if suffix == ".mkv" and clip.has_alpha:
            return "ffv1"
        if suffix == ".mov" and (clip.has_alpha or clip.codec == "prores"):
            return "prores"
        return "h264" if (options.bit_depth or clip.bit_depth) <= 8 or small else "hevc"
    if suffix not in CONTAINERS[options.codec]:
        raise MediaError(f"{options.codec} cannot be stored in a {suffix or 'nameless'} file; "
                         f"use {' or '.join(sorted(CONTAINERS[options.codec]))}, or another --codec")
    if options.codec == "hevc" and small:
        raise MediaError(f"{clip.width}x{clip.height} is too small for hevc, whose encoder needs {CODECS['hevc'].smallest[0]} pixels "
                         f"across and {CODECS['hevc'].smallest[1]} down; use another --codec")
    return options.codec


def choose_encoding(clip: VideoClip, path: Path, options: OutputOptions) -> Encoding:
    """How `clip` is to be written to the video file `path`. Raises MediaError for what cannot be done."""
    suffix = path.suffix.lower()
    if suffix not in MUXERS:
        raise MediaError(f"{path}: files ending in {suffix or 'nothing'} cannot be written; "
                         "use .mp4, .mov or .mkv, or --codec png for a folder")
    name = choose_codec(clip, suffix, options)
    codec, notes, size = CODECS[name], without_effect(options, name), f"{clip.width}x{clip.height}"
    # chroma: halved only where the sides are even
    odd, even_only = clip.width % 2 or clip.height % 2, name in ("h264", "hevc")
    chroma = options.chroma or (444 if odd and even_only else codec.chroma)
    if chroma != 444 and (odd and even_only or clip.width % 2 and name == "ffv1"):
        raise MediaError(f"{size} has an odd side and cannot be stored as {':'.join(str(chroma))} in {name}; leave --chroma away")
    if odd and not options.chroma and even_only:
        notes.append(f"some players do not show it: {size} has an odd side, so color is stored at full resolution (4:4:4)")
    kind = layout(clip.pix_fmt) if clip.pix_fmt else None
    finer = {(1, 2): "422", (1, 1): "444"}.get(kind.step, "") if kind and kind.kind == "yuv" else ""
    if finer and chroma == 420 and not options.chroma and not clip.gray:
        notes.append(f"color is stored as 4:2:0, which every player shows; --chroma {finer} keeps its {':'.join(finer)}")
    # depth and transparency
    depth = options.bit_depth or (10 if clip.bit_depth > 8 else 8)
    if options.codec == "auto" and name == "h264" and depth > 8:
        notes.append(f"some players do not show it: {size} is too small for hevc, so it is stored as h264 with {depth} bits")
    if clip.has_alpha and not codec.alpha:
        notes.append(f"transparency is dropped, {name} has none; --codec prores (.mov), ffv1 (.mkv) or png keep it")
    alpha = clip.has_alpha and codec.alpha
    pix_fmt, encoder = codec.settings(Want(clip, options, chroma, depth, alpha, finer))
    if even_only and clip.bit_depth > depth and options.bit_depth is None:
        notes.append(f"its {clip.bit_depth} bits are stored as {depth}; --codec ffv1 (.mkv) or png keep them")
    place = "topleft" if clip.chroma == "topleft" and "420p" in pix_fmt else "left"          # as in HDR
    if place != "left":
        encoder["chroma_sample_location"] = place
    # what stays behind
    lacking = ["HDR10's mastering display and light levels (hevc takes them)"] * bool(clip.light and name != "hevc") + list(clip.extras)
    lacking += clip.telemetry if suffix == ".mkv" or not options.audio else ()
    lacking += ["attached files (.mkv takes them)"] * bool(clip.attached and suffix != ".mkv")
    if lacking:
        notes.append("not carried over: " + ", ".join(lacking))
    return Encoding(name, clip, pix_fmt, output_tags(clip, name), alpha, tuple(encoder.items()), tuple(notes), place)


def output_tags(clip: VideoClip, codec: str) -> ColorTags:
    """The tags to write: the input's own where it is Y'CbCr, with the matrix that was assumed spelled out; BT.709 for RGB."""
    tags = clip.color
    if tags.matrix == RGB or clip.files or clip.gray and tags.matrix == UNSPECIFIED:
        primaries, transfer = (BT709, BT709) if tags.primaries == tags.transfer == UNSPECIFIED else (tags.primaries, tags.transfer)
        return ColorTags(BT2020 if primaries == BT2020 else BT709, primaries, transfer, False)
    usual = BT709 if tags.matrix == BT709 else SMPTE170M if tags.matrix in (5, 6) else UNSPECIFIED
    primaries, transfer = (usual if tag == UNSPECIFIED else tag for tag in (tags.primaries, tags.transfer))
    return ColorTags(tags.matrix, primaries, transfer, tags.full_range and codec != "prores")      # ProRes cannot say that it is full range


def configure(context, encoding: Encoding) -> None:
    """Set up an encoder's context (a stream's or one of its own)."""
    clip = encoding.clip
    context.width, context.height, context.pix_fmt = clip.width, clip.height, encoding.pix_fmt
    context.time_base, context.framerate, context.sample_aspect_ratio = clip.time_base, clip.rate, clip.pixel_aspect
    context.color_range = 2 if encoding.color.full_range else 1
    context.colorspace = encoding.color.matrix
    context.color_primaries, context.color_trc = encoding.color.primaries, encoding.color.transfer
    context.flags |= _GLOBAL_HEADER
    context.options = dict(encoding.options)
    if encoding.intra:
        context.thread_type = "SLICE"


class Packet(NamedTuple):
    """An encoded picture. Times are in the encoding's time base."""

    pts: int
    duration: int
    key: bool
    data: bytes


def open_encoder(encoding: Encoding) -> av.CodecContext:
    """An encoder for one closed run of frames. Raises MediaError for what it refuses, such as frames that are too large for it."""
    context = av.CodecContext.create(CODECS[encoding.codec].encoder, "w")
    configure(context, encoding)
    try:
        context.open()
    except av.error.MemoryError:
        raise
    except av.FFmpegError as error:
        raise MediaError(f"{encoding.codec} cannot store frames of {context.width}x{context.height} pixels as {encoding.pix_fmt} "
                         f"({reason(error)}); use another --codec") from None
    return context


def picture_bytes(picture: av.VideoFrame) -> bytes:
    """The picture's planes, to be spooled to disk."""
    return b"".join(bytes(plane) for plane in picture.planes)


def picture_from_bytes(data: bytes, encoding: Encoding) -> av.VideoFrame:
    """Inverse of `picture_bytes`."""
    picture = av.VideoFrame(encoding.clip.width, encoding.clip.height, encoding.pix_fmt)
    position = 0
    for plane in picture.planes:
        plane.update(data[position: position + plane.buffer_size])
        position += plane.buffer_size
    picture.colorspace, picture.color_range = encoding.color.matrix, 2 if encoding.color.full_range else 1
    return picture


def no_room(error: BaseException | None) -> bool:
    """Whether the error means that the disk is full."""
    return error is not None and (getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or no_room(error.__cause__))


# A segment in the packet file: magic, its number, its frames, its packets, the bytes that follow; then the packets.
_SEGMENT = struct.Struct("<4sIIIQ")
_PACKET = struct.Struct("<qqB3xI")


def segment_bytes(number: int, frames: int, packets: Sequence[Packet]) -> bytes:
    """A segment as it is appended to the packet file."""
    body = b"".join(_PACKET.pack(p.pts, p.duration, p.key, len(p.data)) + p.data for p in packets)
    return _SEGMENT.pack(b"VDDS", number, frames, len(packets), len(body)) + body


def finished_segments(path: Path) -> tuple[int, int, int]:
    """(segments, frames, bytes) of the whole segments at the start of the packet file; what follows was being written."""
    segments = frames = position = 0
    with path.open("rb") as file:
        while len(head := file.read(_SEGMENT.size)) == _SEGMENT.size:
            magic, number, count, _, length = _SEGMENT.unpack(head)
            end = position + _SEGMENT.size + length
            if magic != b"VDDS" or number != segments or end > path.stat().st_size:
                break
            segments, frames, position = segments + 1, frames + count, file.seek(end)
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


def with_decoding_times(paths: Sequence[Path], frame: int) -> Iterator[tuple[Packet, int]]:
    """Packets with their decoding times: the presentation times in order, moved back by the reordering depth."""
    depth, clock = _reorder_depth(paths), None
    for packets in read_segments(paths):
        ordered = sorted(p.pts for p in packets)
        if clock is None:
            clock = [ordered[0] - frame * (depth - i) for i in range(depth)]
        clock += ordered
        yield from zip(packets, clock)
        clock = clock[len(packets):]
