"""Rows of picture files as clips: find them, read them, write PNG."""
from __future__ import annotations

import dataclasses
import glob
import io
import os
import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

from .clip import Clip, Frame, MediaError
from .pixel_formats import BT709, BT2020, UNSPECIFIED, ColorTags, Layout, complete_tags, from_rgb, is_wide, layout, layout_of, to_rgb

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".exr", ".ppm", ".pgm", ".tga", ".dpx", ".jp2"}
_CENTRED = {"mjpeg", "webp"}
_EXIF = {2: (0, True), 3: (2, False), 4: (2, True), 5: (1, True), 6: (3, False), 7: (3, True), 8: (1, False)}
_NUMBERED = re.compile(r"%0?\d*d")
_COLOUR_CHUNKS = (b"cICP", b"gAMA", b"cHRM", b"sRGB", b"mDCV", b"cLLI")
_HEAD = 1 << 14                                                # bytes of a file that nearly always tell its pixel format


def natural_order(paths: Sequence[Path]) -> list[Path]:
    """Sorted so that frame_2 comes before frame_10."""
    return sorted(paths, key=lambda p: [int(t) if t.isdigit() else t.lower() for t in re.split(r"(\d+)", p.name)])


def find_images(where: str | Path) -> list[Path]:
    """The pictures of a folder, of a `*` pattern or of a `%06d` pattern, in order; empty when there are none."""
    text, path = str(where), Path(where)
    if path.is_dir():
        found = [p for p in path.iterdir() if not p.name.startswith(".")]
    elif _NUMBERED.search(path.name):
        before, after = _NUMBERED.split(path.name, maxsplit=1)
        name = re.compile(re.escape(before) + r"\d+" + re.escape(after))
        found = [p for p in path.parent.iterdir() if name.fullmatch(p.name)] if path.parent.is_dir() else []
    else:
        found = matching(text)
    return natural_order([p for p in found if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()])


def matching(pattern: str) -> list[Path]:
    """The files that a `*` pattern means. Brackets in the name of a folder that exists are taken as they are."""
    path = Path(pattern)
    if path.parent.is_dir():
        pattern = os.path.join(glob.escape(str(path.parent)), path.name)
    return [Path(p) for p in glob.glob(pattern)]


def gaps(files: Sequence[Path]) -> str:
    """A note about numbers that are missing in the names of a sequence, or ""."""
    numbers = [re.findall(r"\d+", file.stem)[-1:] for file in files]
    if len(files) < 3 or not all(numbers):
        return ""
    steps = [int(b[0]) - int(a[0]) for a, b in zip(numbers, numbers[1:])]
    usual, count = Counter(steps).most_common(1)[0]
    places = [i for i, step in enumerate(steps) if step > usual > 0]
    if not places or 2 * count <= len(steps):                  # or the numbers are not a count
        return ""
    return (f"its numbering has {len(places)} gap{'s' if len(places) > 1 else ''}, the first behind {files[places[0]].name}; "
            "the pictures are taken as following each other")


def _orientation(data: bytes) -> tuple[int, bool]:
    """(quarter turns counter-clockwise, mirrored left-right before) from a picture file's EXIF."""
    try:
        from PIL import Image
        with Image.open(io.BytesIO(data)) as picture:
            return _EXIF.get(picture.getexif().get(0x0112), (0, False))
    except (ImportError, OSError, ValueError, SyntaxError):    # no Pillow, or a format that it does not read
        return 0, False


def _turn(picture: np.ndarray, turns: int, flip: bool) -> np.ndarray:
    return np.ascontiguousarray(np.rot90(picture[:, ::-1] if flip else picture, turns))


def _decode_image(path: Path) -> tuple[av.VideoFrame, str, tuple[int, bool]]:
    """(decoded picture, codec, orientation)."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise MediaError(f"{path} does not exist") from None
    except OSError as error:
        raise MediaError(f"{path} cannot be read ({error.strerror})") from None
    if not data:
        raise MediaError(f"{path} is empty (0 bytes)")
    if data[:4] == b"RIFF" and b"ANIM" in data[:64]:
        raise MediaError(f"{path} is an animated WebP, which cannot be read; convert it to a video, .gif or .apng first")
    if data[:4] == b"\x89PNG" and b"acTL" in data[:data.find(b"IDAT")]:
        raise MediaError(f"{path} is an animation; give it a name ending in .apng to have all its frames read")
    try:
        if path.suffix.lower() == ".tga":                      # nothing in such a file tells FFmpeg what it is
            return _decode_tga(data), "targa", (0, False)
        if data[:4] in (b"II*\0", b"MM\0*") and (frame := _decode_jpeg_in_tiff(data)) is not None:
            return frame, "tiff", _orientation(data)
        # through a buffer: ffmpeg would take % in a file's name for a pattern
        with av.open(io.BytesIO(data)) as container:
            return next(container.decode(video=0)), container.streams.video[0].codec_context.name, _orientation(data)
    except (av.FFmpegError, StopIteration, IndexError, OSError, ValueError):
        raise MediaError(f"{path} is not a picture that can be read") from None


def _decode_tga(data: bytes) -> av.VideoFrame:
    frame = av.CodecContext.create("targa", "r").decode(av.Packet(data))[0]
    return frame.reformat(format="bgr0") if frame.format.name == "bgra" and not data[17] & 15 else frame       # no bit of it is alpha


def _decode_jpeg_in_tiff(data: bytes) -> av.VideoFrame | None:
    """A TIFF file that is compressed as JPEG, of which FFmpeg makes a black picture without a word; None for any other."""
    try:
        from PIL import Image
        with Image.open(io.BytesIO(data)) as picture:
            if "jpeg" not in str(picture.info.get("compression")):
                return None
            gray = picture.mode in ("1", "L")
            return av.VideoFrame.from_ndarray(np.asarray(picture.convert("L" if gray else "RGB")), "gray" if gray else "rgb24")
    except (ImportError, OSError, ValueError, SyntaxError):
        return None


def read_image(path: str | Path) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One picture file -> (rgb (H,W,3), alpha (H,W) or None), float32 in [0,1], upright. Raises MediaError."""
    frame, codec, (turns, flip) = _decode_image(Path(path))
    rgb, alpha = to_rgb(frame, _image_tags(frame, codec), centred_chroma=codec in _CENTRED)
    if turns or flip:
        rgb, alpha = _turn(rgb, turns, flip), None if alpha is None else _turn(alpha, turns, flip)
    return torch.from_numpy(rgb), None if alpha is None else torch.from_numpy(np.ascontiguousarray(alpha))


def _image_tags(frame: av.VideoFrame, codec: str) -> ColorTags:
    kind = layout_of(frame).kind
    full = kind != "yuv" or codec != "webp"                    # JPEG spans the full range with BT.601's matrix
    tags = complete_tags(ColorTags(full_range=full), kind, 0, 0)
    return tags


def write_image(path: str | Path, rgb: torch.Tensor, alpha: torch.Tensor | None = None, *, bit_depth: int = 8, gray: bool = False,
                compression: int = 3) -> None:
    """Save (H,W,3) float32 in [0,1] as PNG with 8 or 16 bits; written aside and renamed. `gray` stores one channel."""
    path = Path(path)
    data = encode_png(rgb.numpy(), None if alpha is None else alpha.numpy(), bit_depth=bit_depth, gray=gray, compression=compression)
    aside = path.with_name(path.name + ".part")
    aside.write_bytes(data)
    os.replace(aside, path)


def encode_png(rgb: np.ndarray, alpha: np.ndarray | None, *, bit_depth: int = 8, gray: bool = False, compression: int = 3,
               chunks: bytes = b"") -> bytes:
    """(H,W,3) float32 RGB in [0,1], alpha (H,W) or None -> the bytes of a PNG file. `chunks`, whole ones, go behind the header."""
    wide = bit_depth > 8
    if gray:
        pix_fmt = ("ya16be" if wide else "ya8") if alpha is not None else ("gray16be" if wide else "gray")
    else:
        pix_fmt = ("rgba64be" if wide else "rgba") if alpha is not None else ("rgb48be" if wide else "rgb24")
    context = av.CodecContext.create("png", "w")
    context.height, context.width = rgb.shape[:2]
    context.pix_fmt, context.time_base, context.framerate = pix_fmt, Fraction(1, 25), Fraction(25)
    context.options = {"compression_level": str(compression), "pred": "mixed"}
    frame = from_rgb(rgb, alpha, pix_fmt, ColorTags(full_range=True), gray=gray)
    data = b"".join(bytes(p) for p in [*context.encode(frame), *context.encode(None)])
    return data[:33] + chunks + data[33:]


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _profile(path: Path) -> bytes:
    """The ICC profile of a picture file, or b""."""
    try:
        from PIL import Image
        with Image.open(path) as picture:
            return picture.info.get("icc_profile") or b""
    except (ImportError, OSError, ValueError, SyntaxError):
        return b""


def _png_chunks(path: Path, profile: bytes, gray: bool) -> bytes:
    """What a picture file says about its colours as chunks of a PNG file: an ICC profile, or the tags of a PNG file."""
    found = b""
    with path.open("rb") as file:
        if file.read(8) == b"\x89PNG\r\n\x1a\n":
            while len(head := file.read(8)) == 8 and head[4:] != b"IDAT":
                length, name = struct.unpack(">I4s", head)
                data = file.read(length + 4)[:length]
                found += _chunk(name, data) if name in _COLOUR_CHUNKS else b""
    if profile[16:20] == (b"GRAY" if gray else b"RGB "):       # PNG takes no other one
        found += _chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(profile))
    return found


def png_chunks(clip: Clip) -> bytes:
    """What the PNG files made of a clip have to say about their colours; nothing for those that every program assumes."""
    primaries, transfer = clip.color.primaries, clip.color.transfer
    if clip.png_chunks or not is_wide(clip.color):
        return clip.png_chunks
    return _chunk(b"cICP", bytes([primaries if primaries != UNSPECIFIED else BT2020, transfer if transfer != UNSPECIFIED else BT709, 0, 1]))


def _plain_png(head: bytes) -> str:
    """Pixel format of a PNG file without a transparent colour, "" for anything else: many times faster than asking ffmpeg."""
    if head[:8] != b"\x89PNG\r\n\x1a\n" or head[12:16] != b"IHDR" or b"IDAT" not in head or b"tRNS" in head:
        return ""
    names = {0: ("gray", "gray16be"), 2: ("rgb24", "rgb48be"), 3: ("pal8", ""), 4: ("ya8", "ya16be"), 6: ("rgba", "rgba64be")}
    return names.get(head[25], ("", ""))[head[24] == 16]


def _peek(path: Path) -> tuple[str, Layout, bool] | None:
    """(pixel format, its meaning, whether it may be transparent) from a picture's header alone where that suffices.

    None if it cannot be read: the reader will say so when it gets there.
    """
    for length in (_HEAD, -1):
        try:
            with path.open("rb") as file:
                data = file.read(length)
            if path.suffix.lower() == ".tga":
                frame = _decode_tga(path.read_bytes())
                return frame.format.name, layout_of(frame), layout_of(frame).alpha and frame.format.name != "pal8"
            if plain := _plain_png(data):
                kind = layout(plain)
                return plain, kind, kind.alpha and plain != "pal8"
            with av.open(io.BytesIO(data)) as container:
                context = container.streams.video[0].codec_context
                if context.pix_fmt:
                    kind = layout_of(context)
                    return context.pix_fmt, kind, kind.alpha and (context.pix_fmt != "pal8" or b"tRNS" in data)
        except (av.FFmpegError, IndexError, OSError, ValueError):
            pass
    return None


def _transparent(path: Path) -> bool:
    """Whether any pixel of a picture with a palette is."""
    try:
        alpha = read_image(path)[1]
    except MediaError:                                         # the reader will say so when it gets there
        return False
    return alpha is not None and bool(alpha.min() < 1)


def probe_images(files: Sequence[Path], rate: Fraction = Fraction(24), name: Path | None = None) -> Clip:
    """The clip that `files` make, shown at `rate`: grey if all are, transparent if one is, with the depth of the deepest.

    Reads the first fully, and the size and header of all. Raises MediaError.
    """
    if not files:
        raise MediaError(f"{name} holds no pictures that can be read ({', '.join(sorted(IMAGE_SUFFIXES))})")
    frame, codec, (turns, _) = _decode_image(files[0])
    kind = layout_of(frame)
    has_alpha = kind.alpha and (frame.format.name != "pal8" or bool(to_rgb(frame, _image_tags(frame, codec))[1].min() < 1))
    gray, deepest, pix_fmt = kind.kind == "gray", (kind.floating, kind.depth), frame.format.name
    for file in files[1:]:
        found = _peek(file)
        if found is None:
            continue
        found_format, other, alpha = found
        gray = gray and other.kind == "gray"
        has_alpha = has_alpha or alpha and (found_format != "pal8" or _transparent(file))
        if (other.floating, other.depth) > deepest:
            deepest, pix_fmt = (other.floating, other.depth), found_format
    width, height = (frame.height, frame.width) if turns % 2 else (frame.width, frame.height)
    profile = _profile(files[0])
    chunks, tags = _png_chunks(files[0], profile, gray), _image_tags(frame, codec)
    if b"cICP" in chunks:
        primaries, transfer = chunks[chunks.index(b"cICP") + 4:][:2]
        said = dataclasses.replace(tags, primaries=primaries, transfer=transfer)
        tags = said if is_wide(said) else tags
    extras = ("the colour profile of its pictures",) if profile and b"sRGB" not in profile.replace(b"\0", b"") else ()
    return Clip(path=name or files[0], width=width, height=height, num_frames=len(files), rate=rate, time_base=1 / rate,
                bit_depth=min(16, deepest[1]), has_alpha=has_alpha, gray=gray, color=tags, png_chunks=chunks,
                extras=extras, codec=codec, pix_fmt=pix_fmt, files=tuple(files), size_bytes=sum(f.stat().st_size for f in files))


class ImageReader:
    """Iterate over a sequence's pictures as `Frame`s. A picture that is damaged or of another size ends the clip there:
    `lost` and `notes` then say so.
    """

    def __init__(self, clip: Clip, start: int = 0):
        self.clip, self.start = clip, start
        self.lost = 0
        self.notes: list[str] = []

    def __iter__(self) -> Iterator[Frame]:
        clip = self.clip
        for index in range(self.start, len(clip.files)):
            file = clip.files[index]
            try:
                rgb, alpha = read_image(file)
            except MediaError as error:
                if index == 0:
                    raise
                self.notes.append(f"{error}; the {len(clip.files) - index} pictures from there on were left out")
                self.lost = len(clip.files) - index
                return
            if rgb.shape[:2] != (clip.height, clip.width):
                self.notes.append(f"the frame size changes from {clip.width}x{clip.height} to {rgb.shape[1]}x{rgb.shape[0]} at {file}; "
                                  f"the {len(clip.files) - index} pictures from there on were left out")
                self.lost = len(clip.files) - index
                return
            if clip.has_alpha != (alpha is not None):
                alpha = torch.ones(rgb.shape[:2]) if clip.has_alpha else None
            yield Frame(rgb, alpha, index, 1, index)
