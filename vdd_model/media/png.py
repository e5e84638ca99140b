"""PNG files out: one picture with 8 or 16 bits, and what it says about its colors."""
from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image

from .clip import VideoClip
from .files import write_whole
from .pixel_formats import BT709, BT2020, OF_PNG, UNSPECIFIED, ColorTags, from_rgb, is_wide

_ORIENTATION = re.compile(rb"""\s+tiff:Orientation=["']\d["']|<tiff:Orientation>\d</tiff:Orientation>""")
_OF_THE_FILE = re.compile(rb"hdrgm:|GCamera:|GContainer|Container:")          # what XMP says of further pictures in the file
_WORDS = {270, 271, 272, 305, 306, 315, 33432, 34665, 34853}   # tags of a TIFF that tell nothing of how it is stored: title to place
_GRAPH = re.compile(rb"(workflow|prompt):(\{[^\0]*)\0", re.IGNORECASE)           # a text of EXIF, as ComfyUI's nodes write it
_COLOR_CHUNKS = (b"cICP", b"gAMA", b"cHRM", b"sRGB", b"mDCV", b"cLLI")


def write_image(path: str | Path, rgb: torch.Tensor, alpha: torch.Tensor | None = None, *, bit_depth: int = 8, gray: bool = False) -> None:
    """Save (H,W,3) float32 in [0,1] as PNG with 8 or 16 bits; written aside and renamed. `gray` stores one channel."""
    write_whole(path, encode_png(rgb.numpy(), None if alpha is None else alpha.numpy(), bit_depth=bit_depth, gray=gray))


def encode_png(rgb: np.ndarray, alpha: np.ndarray | None, *, bit_depth: int = 8, gray: bool = False, chunks: bytes = b"") -> bytes:
    """(H,W,3) float32 RGB in [0,1], alpha (H,W) or None -> the bytes of a PNG file. `chunks`, whole ones, go behind the header."""
    layout = (1 if gray else 3) + (alpha is not None), 16 if bit_depth > 8 else 8
    pix_fmt = next(name for name, found in OF_PNG.items() if found == layout)
    context = av.CodecContext.create("png", "w")
    context.height, context.width = rgb.shape[:2]
    context.pix_fmt, context.time_base, context.framerate = pix_fmt, Fraction(1, 25), Fraction(25)
    context.options = {"compression_level": "3", "pred": "mixed"}
    frame = from_rgb(rgb, alpha, pix_fmt, ColorTags(full_range=True), gray=gray)
    data = b"".join(bytes(p) for p in [*context.encode(frame), *context.encode(None)])
    rest = data[33 + 21:] if data[37:41] == b"pHYs" else data[33:]             # FFmpeg's says that the shape of pixels is not known
    return data[:33] + chunks + rest


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _chunks_in(path: Path, end: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(name, content) of the chunks of a PNG file up to the one called `end`, the picture's own left out; nothing of another file."""
    with path.open("rb") as file:
        if file.read(8) == b"\x89PNG\r\n\x1a\n":
            while len(head := file.read(8)) == 8 and head[4:] != end:
                length, name = struct.unpack(">I4s", head)
                if name == b"IDAT":
                    file.seek(length + 4, 1)
                else:
                    yield name, file.read(length + 4)[:length]


def chunks_of(path: Path, profile: bytes, gray: bool) -> bytes:
    """What a picture file says about its colors as chunks of a PNG file: an ICC profile, or the tags of a PNG file."""
    found = b"".join(_chunk(name, data) for name, data in _chunks_in(path, b"IDAT") if name in _COLOR_CHUNKS)
    if profile[16:20] == (b"GRAY" if gray else b"RGB "):       # PNG takes no other one
        found += _chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(profile))
    return found


def texts_of(path: Path) -> bytes:
    """The texts of a PNG file, such as ComfyUI's `workflow` and `prompt`, as chunks; none that tells its orientation. Of others: those two.
    """
    texts = [(name, _ORIENTATION.sub(b"", data)) for name, data in _chunks_in(path, b"IEND")
             if name in (b"tEXt", b"zTXt", b"iTXt") and not data.startswith(b"Raw profile type")]
    texts = texts or [(b"tEXt", f"{key}\0{text}".encode()) if text.isascii() else (b"iTXt", key.encode() + bytes(5) + text.encode())
                      for key, text in graph_of(path).items()]
    return b"".join(_chunk(*text) for text in texts)


def graph_of(path: Path) -> dict[str, str]:
    """ComfyUI's `workflow` and `prompt` where FFmpeg does not look: in a moving PNG file, and in the EXIF of WebP, AVIF, JPEG and others,
    which stands in the file as it is."""
    found, data = dict(data.partition(b"\0")[::2] for name, data in _chunks_in(path, b"IEND") if name == b"comf"), path.read_bytes()
    found |= {text[1].lower(): text[2] for text in _GRAPH.finditer(data)}
    return {key.decode(errors="replace"): text.decode(errors="replace") for key, text in found.items()}


def about(picture: Image.Image | None, turned: bool) -> bytes:
    """What a photograph says of itself beside its colors, as chunks of a PNG file: pixels per inch, EXIF, XMP; not its orientation."""
    found = b""
    if picture and "dpi" in picture.info and 282 in getattr(picture, "tag_v2", (282,)):      # Pillow has 1 where a TIFF says nothing
        x, y = (round(float(n) / 0.0254) for n in picture.info["dpi"])
        found += _chunk(b"pHYs", struct.pack(">IIB", *((y, x) if turned else (x, y)), 1)) if 0 < min(x, y) <= max(x, y) < 2**31 else b""
    if picture and ("exif" in picture.info or picture.format == "TIFF"):
        exif = picture.getexif()
        for tag in [tag for tag in exif if tag == 0x0112 or picture.format == "TIFF" and tag not in _WORDS]:
            del exif[tag]
        found += _chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) if exif else b""
    xmp = picture.info.get("xmp", b"") if picture and picture.format != "PNG" else b""         # a PNG file's own is one of its texts
    if isinstance(xmp, bytes) and xmp and not _OF_THE_FILE.search(xmp):
        found += _chunk(b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + _ORIENTATION.sub(b"", xmp))
    return found


def png_chunks(clip: VideoClip) -> bytes:
    """What the PNG files made of a clip have to say about their colors; nothing for those that every program assumes."""
    primaries, transfer = clip.color.primaries, clip.color.transfer
    if clip.png_chunks or not is_wide(clip.color):
        return clip.png_chunks
    return _chunk(b"cICP", bytes([primaries if primaries != UNSPECIFIED else BT2020, transfer if transfer != UNSPECIFIED else BT709, 0, 1]))
