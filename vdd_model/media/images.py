"""Picture files: one alone, with one reader for all who look at pictures, and rows of them as clips."""
from __future__ import annotations

import contextlib
import dataclasses
import glob
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TgaImagePlugin import TgaImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from . import jpeg, tiff
from .clip import Frame, MediaError, VideoClip
from .container import raw_picture
from .jpeg import BROKEN
from .pixel_formats import UNSPECIFIED, ColorTags, complete_tags, differ, is_wide, layout, planes_of, to_rgb
from .png import about, chunks_of, graph_of
from .probe import orientation
from .reader import upright

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".bmp", ".tif", ".tiff", ".webp", ".exr", ".ppm", ".pgm", ".pbm",
                  ".pnm", ".pam", ".tga", ".dpx", ".jp2", ".j2k", ".avif", ".heic", ".heif", ".hif", ".qoi", ".pcx", ".sgi"}
_MOVING = (b"avis", b"hevc", b"hevx", b"msf1")                 # brands of such files that hold a row of pictures
_CENTRED = {"mjpeg", "webp"}
# orientation -> (quarter turns counter-clockwise, whether left and right are swapped after them)
_EXIF = {2: (0, True), 3: (2, False), 4: (2, True), 5: (3, True), 6: (3, False), 7: (1, True), 8: (1, False)}
_NUMBERED = re.compile(r"%0?\d*d")
_EXIF_WORDS = (b"Exif", b"EXIF", b"eXIf", b"exif", b"tiff:Orientation")
_STARTS = {b"\x89PNG": "png", b"\xff\xd8": "mjpeg", b"BM": "bmp", b"v/1\1": "exr", b"SDPX": "dpx", b"XPDS": "dpx",
           b"P5": "pgm", b"P6": "ppm", b"P7": "pam", b"qoif": "qoi", b"\0\0\0\x0cjP": "jpeg2000", b"\xff\x4f\xff\x51": "jpeg2000",
           **dict.fromkeys(tiff.MAGIC, "tiff")}
# formats that are RGB or grey in 8 bits already, and where red, green and blue are
_BYTES = {"rgb24": slice(3), "rgba": slice(3), "bgr24": slice(None, None, -1), "gray": slice(0)}
_END_OF_QOI = bytes(7) + b"\1"                                 # FFmpeg does not miss it, nor what stands in front of it
_HEAD = 1 << 14                                                # bytes of a file that nearly always tell its pixel format


def is_picture(path: Path) -> bool:
    """Whether a path's name, and what the file's head says of itself, is that of one picture."""
    if path.suffix.lower() not in IMAGE_SUFFIXES or not path.is_file():
        return False
    with contextlib.suppress(OSError), path.open("rb") as file:
        return not _moves(file.read(_HEAD))
    return True


def _moves(head: bytes) -> bool:
    """Whether a file that begins so holds a row of pictures: AVIF or HEIC, PNG, WebP."""
    brands = head[8:int.from_bytes(head[:4], "big")] if head[4:8] == b"ftyp" else b""
    return any(brands[i:i + 4] in _MOVING for i in range(0, min(len(brands), 64), 4)) or (
        b"acTL" in head[:head.find(b"IDAT")] if head[:4] == b"\x89PNG" else head[8:12] == b"WEBP" and b"ANIM" in head[:64])


def natural_order(paths: Iterable[Path]) -> list[Path]:
    """Sorted so that frame_2 comes before frame_10."""
    return sorted(paths, key=lambda p: [int(t) if t.isdecimal() else t.lower() for t in re.split(r"(\d+)", p.name)])


def find_images(where: str | Path) -> list[Path]:
    """The pictures among the files that are `listed`, in order; empty when there are none."""
    return natural_order(filter(is_picture, listed(where)))


def listed(where: str | Path) -> list[Path]:
    """The files of a folder, of a `*` pattern or of a `%06d` pattern. Brackets in the name of an existing folder are taken as they are."""
    path, folder = Path(where), Path(where).parent
    if path.is_dir():
        return [p for p in path.iterdir() if p.is_file() and not p.name.startswith(".")]         # macOS keeps ._clip.mp4 beside clip.mp4
    if _NUMBERED.search(path.name):
        name = re.compile(r"\d+".join(map(re.escape, _NUMBERED.split(path.name, maxsplit=1))))
        return [p for p in folder.iterdir() if name.fullmatch(p.name)] if folder.is_dir() else []
    return [Path(p) for p in glob.glob(os.path.join(glob.escape(str(folder)) if folder.is_dir() else folder, path.name))]


def gaps(files: Sequence[Path]) -> str:
    """A note about numbers that are missing in the names of a sequence, or ""."""
    numbers = [re.findall(r"\d+", file.stem)[-1:] for file in files]
    if len(files) < 3 or not all(numbers):
        return ""
    steps = [int(b[0]) - int(a[0]) for a, b in zip(numbers, numbers[1:])]
    usual, count = max(Counter(steps).items(), key=lambda step: (step[1], -step[0]))
    places = [i for i, step in enumerate(steps) if step > usual > 0]
    if not places or 2 * count < len(steps) + (usual > 1):     # or the numbers are not a count
        return ""
    return (f"its numbering has {len(places)} gap{'s' if len(places) > 1 else ''}, the first behind {files[places[0]].name}; "
            "the pictures are taken as following each other")


@dataclass(frozen=True)
class Picture:
    """A decoded picture file: the frame as it is stored, and what the file says about it."""

    frame: av.VideoFrame
    codec: str
    transparent: bool                       # its fourth channel is opacity
    turns: int = 0                          # quarter turns counter-clockwise that put it upright
    mirrored: bool = False                  # left and right are swapped after them
    pixel_aspect: Fraction = Fraction(1)    # of a pixel as it is stored
    pages: int = 1                          # pictures in the file, of which this is the first
    color: ColorTags = ColorTags(full_range=True)
    also: str = ""                          # what else is in the file, in words


def _decode_image(source: str | Path | bytes, name: str = "") -> Picture:
    """The picture in a file, or in the bytes of one called `name`. Raises MediaError, also for what is damaged or cut off."""
    try:
        data, name = (source, name) if isinstance(source, bytes) else (Path(source).read_bytes(), str(source))
    except FileNotFoundError:
        raise MediaError(f"{source} does not exist") from None
    except OSError as error:
        raise MediaError(f"{source} cannot be read ({error.strerror})") from None
    if not data:
        raise MediaError(f"{name} is empty (0 bytes)")
    codec = "targa" if name.lower().endswith(".tga") else _codec(data)         # nothing in such a file tells FFmpeg what it is
    if codec in ("png", "webp") and _moves(data):
        raise MediaError(f"{name} is an animation, which is a clip and no picture")
    try:
        if codec == "tiff":
            return _decode_tiff(data, name)
        if codec == "heif":
            return dataclasses.replace(_decode_heif(data, name), also=jpeg.GAIN_MAP * jpeg.has_gain_map(data))
        if codec == "targa":
            frame, aspect = _decode_tga(data), None
        elif codec:
            frame, aspect = _frame(data, codec)
        else:                                                  # through a buffer: ffmpeg would take % in a file's name for a pattern
            with av.open(io.BytesIO(data)) as container:
                frame, stream = next(container.decode(video=0)), container.streams.video[0]
                codec, aspect = stream.codec_context.name, stream.sample_aspect_ratio
        fills_up = codec == "sgi" or codec == "pcx" and data[3] * data[65] != 8            # 8 bits in all: its colors stand at the end
        if (codec == "exr" and _exr_is_cut(data) or codec == "qoi" and _END_OF_QOI not in data
                or fills_up and differ(frame, _frame(data + jpeg.MORE, codec)[0])):
            raise ValueError
    except (av.FFmpegError, StopIteration, IndexError, OSError, ValueError, SyntaxError):
        why = ": it is damaged or cut off" if codec else ""
        raise MediaError(f"{name} is not a picture that can be read{why}") from None
    transparent = layout(frame.format.name).alpha and _may_be_transparent(data, codec)
    pages, also = jpeg.further(data) if codec == "mjpeg" else (1, "")
    return Picture(frame, codec, transparent, *_orientation(data, codec), aspect or Fraction(1), pages, also=also)


def _codec(data: bytes) -> str:
    """FFmpeg's name of the format that a file's first bytes tell, "" for one that its container formats know better."""
    if data[:4] == b"RIFF":
        return "webp" * (data[8:12] == b"WEBP")
    if data[4:8] == b"ftyp" and data[8:12] in (b"avif", b"mif1", b"miaf", b"heic", b"heix", b"heim", b"heis"):
        return "heif"
    return next((codec for start, codec in _STARTS.items() if data.startswith(start)), "")


def _frame(data: bytes, codec: str) -> tuple[av.VideoFrame, Fraction | None]:
    """(picture, shape of its pixels) as FFmpeg decodes it, without its containers: they decode everything twice."""
    for packet in (data, jpeg.without_comments(data)) if codec == "mjpeg" else (data,):
        context = av.CodecContext.create(codec, "r")
        if codec == "mjpeg":                                   # else it fills up what is missing without a word
            context.options = {"err_detect": "explode"}
        try:
            frame = (context.decode(av.Packet(packet)) or context.decode(None))[0]
            if jpeg.is_unended(packet, codec):
                other, _ = _frame(packet + jpeg.MORE + jpeg.END_OF_JPEG, codec)
                if differ(frame, other):
                    raise ValueError("it breaks off within its last rows")
            return frame, _pixel_aspect(context.sample_aspect_ratio, data, codec)
        except av.error.PatchWelcomeError:                     # CMYK with fewer samples of some inks
            with JpegImageFile(io.BytesIO(data)) as picture:
                return av.VideoFrame.from_ndarray(np.asarray(picture.convert("RGB")), "rgb24"), None
        except av.FFmpegError as error:
            damage = error
    raise damage


def _pixel_aspect(found: Fraction | None, data: bytes, codec: str) -> Fraction:
    """The shape of a pixel: FFmpeg takes also pixels per metre or inch for it, of which a wide pixel has fewer."""
    if codec not in ("png", "mjpeg") or found in (None, 0, 1) or not (picture := _opened(data, codec)):
        return found or Fraction(1)
    is_shape = "aspect" in picture.info if codec == "png" else picture.info.get("jfif_unit", 0) == 0
    return found if is_shape else 1 / found


def _exr_is_cut(data: bytes) -> bool:
    """Whether blocks of an OpenEXR file lie behind its end, which FFmpeg leaves black without a word."""
    if data[5] & 0x18:                                         # deep data, or several parts
        return False
    place, head = 8, 16 if data[5] & 2 else 4                  # in front of a block's size: where it belongs
    while data[place]:                                         # attributes: name, type, size, value
        place = data.index(0, data.index(0, place) + 1) + 1
        place += 4 + int.from_bytes(data[place:place + 4], "little")
    place, ends, first = place + 1, 0, len(data)
    while place < first:                                       # the table of blocks goes as far as the first of them
        block = int.from_bytes(data[place:place + 8], "little")
        if not block:                                          # FFmpeg makes the table itself
            return False
        first, place = min(first, block), place + 8
        ends = max(ends, block + head + 4 + int.from_bytes(data[block + head:block + head + 4], "little"))
    return ends > len(data)


def _decode_tiff(data: bytes, name: str) -> Picture:
    tags = tiff.Tags(data)
    if tags.raw:
        raise raw_picture(name)
    tags.check(data)
    frame, upright = (_frame(data, "tiff")[0], False) if tags.for_ffmpeg else tiff.decode(data, tags, name)
    turns, mirrored = (0, False) if upright else _EXIF.get(tags.orientation, (0, False))
    aspect = 1 / tags.aspect if upright and tags.orientation > 4 else tags.aspect
    return Picture(frame, "tiff", tags.transparent, turns, mirrored, aspect, tags.pages)


def _decode_heif(data: bytes, name: str) -> Picture:
    """AVIF and HEIC. FFmpeg gives tiles, transparency and thumbnails as streams of their own: what has several is better read by others."""
    tiles, several = b"grid" in data[:1 << 16], True
    if not tiles:
        with av.open(io.BytesIO(data)) as container:
            several = len(container.streams.video) > 1
            frame = next(container.decode(max(container.streams.video, key=lambda s: s.codec_context.width * s.codec_context.height)))
    try:
        if several:
            return _with_pillow(data)
    except (ImportError, SyntaxError) as error:
        if tiles and isinstance(error, ImportError):
            raise MediaError(f"{name} is stored in tiles, which the package pillow-heif reads; install it, or save the picture as JPEG or "
                             "PNG") from None
        if tiles:
            raise
    primaries, transfer = (int(getattr(frame, tag, UNSPECIFIED)) for tag in ("color_primaries", "color_trc"))
    color = ColorTags(int(frame.colorspace), primaries, transfer, int(frame.color_range) == 2)
    return Picture(frame, "heif", layout(frame.format.name).alpha, *orientation(frame), color=color)


def _heif_reader(data: bytes) -> type[Image.Image]:
    if data[8:12] == b"avif":
        from PIL.AvifImagePlugin import AvifImageFile as Reader
    else:
        from pillow_heif import HeifImageFile as Reader
    return Reader


def _with_pillow(data: bytes) -> Picture:
    with _heif_reader(data)(io.BytesIO(data)) as picture:                  # not Image.open, which refuses large pictures
        mode, pix_fmt = ("RGBA", "rgba") if picture.has_transparency_data else ("RGB", "rgb24")
        turned = _EXIF.get(picture.getexif().get(tiff.ORIENTATION), (0, False))
        return Picture(av.VideoFrame.from_ndarray(np.asarray(picture.convert(mode)), pix_fmt), "heif", mode == "RGBA", *turned)


def _decode_tga(data: bytes) -> av.VideoFrame:
    if data[2] in (3, 11) and data[16] == 16:                  # grey with transparency, which FFmpeg takes for 5 bits a color
        with TgaImageFile(io.BytesIO(data)) as picture:
            return av.VideoFrame.from_ndarray(np.asarray(picture.convert("RGBA")), "rgba")
    if data[2] & 8:                                            # of runs: FFmpeg does not miss the last ones
        with TgaImageFile(io.BytesIO(data)) as picture:
            picture.load()
    frame = av.CodecContext.create("targa", "r").decode(av.Packet(data))[0]
    if frame.format.name != "bgra":
        return frame
    *colors, alpha = planes_of(frame)
    hollow = not alpha.any() and any(color.any() for color in colors)                      # pictures of which nothing would be seen
    return frame.reformat(format="bgr0") if hollow or not data[17] & 15 else frame         # no bit of it is alpha


def _may_be_transparent(data: bytes, codec: str) -> bool:
    """Whether a fourth channel is opacity: in a JPEG file it is black ink, and a decoder may add one of its own."""
    if codec == "webp":
        return bool(data[20] & 16 if data[12:16] == b"VP8X" else data[12:16] == b"VP8L" and data[24] & 16)
    return codec != "mjpeg"


def _opened(data: bytes, codec: str) -> Image.Image | None:
    """The file in Pillow's hands, not yet decoded; not through Image.open, which refuses large pictures."""
    reader = {"mjpeg": JpegImageFile, "png": PngImageFile, "tiff": TiffImageFile, "webp": WebPImageFile}.get(codec)
    with contextlib.suppress(*BROKEN, ImportError):
        reader = _heif_reader(data) if codec == "heif" else reader
        return reader(io.BytesIO(data)) if reader else None


def _orientation(data: bytes, codec: str) -> tuple[int, bool]:
    """As in `_EXIF`, from a picture file's own."""
    with contextlib.suppress(*BROKEN):                         # to look into a PNG file may mean to decode it
        if any(word in data for word in _EXIF_WORDS) and (picture := _opened(data, codec)):
            return _EXIF.get(picture.getexif().get(tiff.ORIENTATION), (0, False))
    return 0, False


def read_image(path: str | Path) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One picture file -> (rgb (H,W,3), alpha (H,W) or None), float32 in [0,1], upright. Raises MediaError."""
    return _pixels(_decode_image(path))


def read_picture(source: str | Path | bytes, name: str = "") -> torch.Tensor:
    """One picture file, or the bytes of one called `name` -> uint8 (H,W,3) RGB, upright: `read_image` in 8 bits. Raises MediaError."""
    picture = _decode_image(source, name)
    if (order := _BYTES.get(picture.frame.format.name)) is None:
        return (_pixels(picture)[0].clamp_(0, 1) * 255).round_().byte()
    values = picture.frame.to_ndarray()
    values = values[..., None].repeat(3, 2) if values.ndim == 2 else values[..., order]
    return torch.from_numpy(upright(values, picture.turns, picture.mirrored))


def picture_size(source: str | Path | bytes, name: str = "") -> tuple[int, int]:
    """(width, height) of what `read_picture` gives, from the header where that suffices. Raises MediaError."""
    data, codec = source, ""
    if not isinstance(source, bytes):
        with contextlib.suppress(OSError), Path(source).open("rb") as file:
            data = file.read(1 << 18)
            data += b"" if _codec(data) == "mjpeg" else file.read()
    if isinstance(data, bytes) and (codec := _codec(data)) not in ("tiff", "heif") and (opened := _opened(data, codec)):
        return opened.size[::-1] if _orientation(data, codec)[0] % 2 else opened.size
    picture = _decode_image(source, name)
    size = picture.frame.width, picture.frame.height
    return size[::-1] if picture.turns % 2 else size


def _pixels(picture: Picture) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(rgb (H,W,3), alpha (H,W) or None), float32 and upright."""
    rgb, alpha = to_rgb(picture.frame, _image_tags(picture), chroma="center" if picture.codec in _CENTRED else "left")
    rgb, alpha = (None if x is None else torch.from_numpy(upright(x, picture.turns, picture.mirrored)) for x in (rgb, alpha))
    return rgb, alpha if picture.transparent else None


def _image_tags(picture: Picture) -> ColorTags:
    """Complete tags; the matrix is BT.601's where nothing is said, and only WebP is of limited range then."""
    kind = layout(picture.frame.format.name).kind
    color = picture.color if kind != "yuv" or picture.codec != "webp" else ColorTags(full_range=False)
    return complete_tags(color, kind, 0, 0)


def _plain_png(head: bytes) -> str:
    """Pixel format of a PNG file without a transparent color, "" for anything else: many times faster than asking ffmpeg."""
    if head[:8] != b"\x89PNG\r\n\x1a\n" or head[12:16] != b"IHDR" or b"IDAT" not in head or b"tRNS" in head:
        return ""
    names = {0: ("gray", "gray16be"), 2: ("rgb24", "rgb48be"), 3: ("pal8", ""), 4: ("ya8", "ya16be"), 6: ("rgba", "rgba64be")}
    return names.get(head[25], ("", ""))[head[24] == 16]


def _peek(path: Path) -> tuple[str, bool] | None:
    """(pixel format, whether it may be transparent) from a picture's header alone where that suffices.

    None if it cannot be read: the reader will say so when it gets there.
    """
    for length in (_HEAD, -1):
        with contextlib.suppress(av.FFmpegError, IndexError, OSError, ValueError, MediaError):
            with path.open("rb") as file:
                data = file.read(length)
            if name := _plain_png(data):
                return name, layout(name).alpha and name != "pal8"
            if path.suffix.lower() == ".tga" or _codec(data) in ("heif", "pam"):
                picture = _decode_image(path)
                return picture.frame.format.name, picture.transparent
            if data.startswith(tiff.MAGIC):
                tags = tiff.Tags(data if length < 0 else path.read_bytes())
                return tags.pix_fmt, tags.transparent
            with av.open(io.BytesIO(data)) as container:
                context = container.streams.video[0].codec_context
                if context.format:                             # `pix_fmt` of none ends the process with PyAV 17
                    name = context.format.name
                    alpha = layout(name).alpha and _may_be_transparent(data, context.name)
                    return name, alpha and (name != "pal8" or b"tRNS" in data)
    return None


def _transparent(path: Path) -> bool:
    """Whether any pixel of a picture with a palette is."""
    with contextlib.suppress(MediaError):                      # the reader will say so when it gets there
        return (alpha := read_image(path)[1]) is not None and bool(alpha.min() < 1)
    return False


def probe_images(files: Sequence[Path], rate: Fraction = Fraction(24), name: Path | None = None) -> VideoClip:
    """The clip that `files` make, shown at `rate`: grey if all are, transparent if one is, with the depth of the deepest.

    Reads the first fully, and the size and header of all. Raises MediaError.
    """
    if not files:
        raise MediaError(f"{name} holds no pictures that can be read ({', '.join(sorted(IMAGE_SUFFIXES))})")
    picture = _decode_image(files[0])
    frame, codec, turned = picture.frame, picture.codec, picture.turns % 2
    found = [(frame.format.name, picture.transparent, files[0])]
    found += ((*header, file) for file in files[1:] if (header := _peek(file)))
    gray = all(layout(name).kind == "gray" for name, _, _ in found)
    has_alpha = any(alpha and (name != "pal8" or _transparent(file)) for name, alpha, file in found)
    pix_fmt, _, _ = max(found, key=lambda each: (layout(each[0]).floating, layout(each[0]).depth))
    width, height = (frame.height, frame.width) if turned else (frame.width, frame.height)
    opened = _opened(files[0].read_bytes(), codec)
    profile = opened.info.get("icc_profile") or b"" if opened else b""
    chunks, tags = chunks_of(files[0], profile, gray), _image_tags(picture)
    if b"cICP" in chunks:
        primaries, transfer = chunks[chunks.index(b"cICP") + 4:][:2]
        said = dataclasses.replace(tags, primaries=primaries, transfer=transfer)
        tags = said if is_wide(said) else tags
    if len(files) == 1:                                        # each of a row would say it of the first
        with contextlib.suppress(*BROKEN, ArithmeticError):
            chunks += about(opened, bool(turned))
    texts = tuple((key, text) for key, text in (opened.info if codec == "png" and opened else {}).items()
                  if isinstance(text, str) and not key.startswith(("XML:", "Raw profile"))) or tuple(graph_of(files[0]).items())
    extras = ("the color profile of its pictures",) if profile and b"sRGB" not in profile.replace(b"\0", b"") else ()
    return VideoClip(path=name or files[0], width=width, height=height, num_frames=len(files), rate=rate, time_base=1 / rate,
                bit_depth=min(16, layout(pix_fmt).depth), has_alpha=has_alpha, gray=gray, color=tags, png_chunks=chunks,
                pixel_aspect=1 / picture.pixel_aspect if turned else picture.pixel_aspect, extras=extras, codec=codec, pix_fmt=pix_fmt,
                metadata=texts, files=tuple(files), size_bytes=sum(f.stat().st_size for f in files))


class ImageReader:
    """Iterate over a sequence's pictures as `Frame`s. A picture that is damaged or of another size ends the clip there:
    `lost` and `notes` then say so.
    """

    def __init__(self, clip: VideoClip, start: int = 0):
        self.clip, self.start = clip, start
        self.lost = 0
        self.notes: list[str] = []

    def __iter__(self) -> Iterator[Frame]:
        clip = self.clip
        for index in range(self.start, len(clip.files)):
            file = clip.files[index]
            try:
                picture = _decode_image(file)
                rgb, alpha = _pixels(picture)
                if rgb.shape[:2] != (clip.height, clip.width):
                    raise MediaError(f"the frame size changes from {clip.width}x{clip.height} to {rgb.shape[1]}x{rgb.shape[0]} at {file}")
            except MediaError as error:
                if index == 0:
                    raise
                self.lost = len(clip.files) - index
                self.notes.append(f"{error}; the {self.lost} pictures from there on were left out")
                return
            if (picture.pages > 1 or picture.also) and not self.notes:
                held = picture.also if picture.also else f"{picture.pages} pictures"
                self.notes.append(f"{file} holds {held}{' too' * bool(picture.also)}; of such a file only the first picture is taken")
            if clip.has_alpha != (alpha is not None):
                alpha = torch.ones(rgb.shape[:2]) if clip.has_alpha else None
            yield Frame(rgb, alpha, index, 1, index)
