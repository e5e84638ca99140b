"""TIFF files. FFmpeg takes some for others without a word (tiles come out black, half floats as integers), so their tags say who reads
them: FFmpeg what it reads rightly, then Pillow, then tifffile where it is installed.
"""
from __future__ import annotations

import contextlib
import io
import warnings
import zlib
from fractions import Fraction

import av
import numpy as np
from PIL import Image, ImageCms
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from .clip import MediaError

warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")              # what is wrong with a file is said once, by us
MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")               # the last two: BigTIFF
ORIENTATION = 274
_OF_FFMPEG = (1, 2, 3, 4, 5, 8, 32773, 32946)                  # compression: none, CCITT, LZW, deflate, PackBits
# by type of value and number of channels
_FORMATS = {"u1": ("gray", "ya8", "rgb24", "rgba"), "u2": ("gray16le", "ya16le", "rgb48le", "rgba64le"),
            "f4": ("grayf32le", "gbrapf32le", "gbrpf32le", "gbrapf32le")}


class Tags:
    """What the first picture of a TIFF file says about itself, by the numbers of TIFF 6.0. Raises ValueError."""

    def __init__(self, data: bytes):
        try:
            pictures = _directories(data)
            get = pictures[0].get
            format, photometric, extra = get(339, (1,))[0], get(262, 1), get(338, (2,))[0]
            self.bits, self.floating, self.integers = max(get(258, (1,))), format == 3, format in (1, 4)
            self.tiled, self.compression, self.predictor = bool(get(322) or get(324)), get(259, 1), get(317, 1)
            self.big, self.planar, self.orientation = b"+" in data[2:4], get(284, 1) == 2, get(ORIENTATION, 1)
            self.gray, self.palette, self.inverted = photometric < 2, photometric == 3, photometric == 0
            self.colors = {3: 1, 5: 4}.get(photometric, 1 if self.gray else 3)
            # FFmpeg writes transparency without any word on what is behind the colors; 0 says that it is something else
            self.transparent = get(277, 1) > self.colors and extra in (1, 2)
            self.lab, self.raw = photometric in (8, 9, 10), photometric in (32803, 34892)      # as in DNG
            self.associated = self.transparent and extra == 1
            size = get(256), get(257)                          # of another size it is the same again, for looking at
            self.pages = max(1, sum((p.get(256), p.get(257)) == size and not p.get(254, 0) & 1 for p in pictures))
            self.aspect = Fraction(get(283) or 1) / Fraction(get(282) or 1)
            places, counts = get(324) or get(273) or (), get(325) or get(279) or ()    # of its tiles or strips, in bytes
            self.is_cut = not places or any(place + count > len(data) for place, count in zip(places, counts))
            self.parts = [slice(place, place + count) for place, count in zip(places, counts)]
        except (SyntaxError, TypeError, KeyError, IndexError, OSError, ArithmeticError) as error:
            raise ValueError(str(error)) from None

    def check(self, data: bytes) -> None:
        """Look at what FFmpeg passes over: an end that is missing, and the sums of deflate. Raises ValueError."""
        try:
            for part in self.parts if self.compression in (8, 32946) else ():
                rest, inflate = data[part], zlib.decompressobj()
                while rest and not inflate.eof:                # a little at a time: nobody wants to have it
                    inflate.decompress(rest, 2**20)
                    rest = inflate.unconsumed_tail
        except zlib.error as error:
            raise ValueError(str(error)) from None
        if self.is_cut:
            raise ValueError

    @property
    def pix_fmt(self) -> str:
        """The pixel format that it is read as, but for the order of channels and bytes."""
        kind, channels = "f4" if self.floating else "u1" if self.bits <= 8 else "u2", (1 if self.gray else 3) + self.transparent
        return "pal8" if self.palette else _FORMATS[kind][channels - 1]

    @property
    def for_ffmpeg(self) -> bool:
        """Whether FFmpeg decodes it rightly."""
        if self.tiled or self.big or self.lab or self.compression not in _OF_FFMPEG or self.associated and self.bits <= 8:
            return False
        if self.floating:
            return self.bits == 32 and not self.gray and (self.predictor == 1 if self.planar else not self.transparent)
        return self.integers and self.bits <= 16 and not (self.gray and self.planar)

    def __str__(self) -> str:
        return (f"{self.bits} bit {'integers' if self.integers else 'floats' if self.floating else 'numbers'} in "
                f"{'tiles' if self.tiled else 'strips'}, compression {self.compression}")


def _directories(data: bytes) -> list[ImageFileDirectory_v2]:
    """The tags of every picture in the file."""
    found, seen, file = [], set(), io.BytesIO(data)
    head = data[:16] if b"+" in data[2:4] else data[:8]
    place = ImageFileDirectory_v2(head).next
    while place and place not in seen:
        seen.add(place)
        file.seek(place)
        found.append(ImageFileDirectory_v2(head))
        found[-1].load(file)
        place = found[-1].next
    return found


def decode(data: bytes, tags: Tags, name: str) -> tuple[av.VideoFrame, bool]:
    """(picture, whether it has been turned upright) of a file that is not `for_ffmpeg`. Raises MediaError."""
    small = tags.bits <= 8 and tags.integers and not (tags.gray and tags.planar)
    # Pillow 13 leaves the bytes of compressed big-endian floats in the wrong order
    if small or tags.gray and not tags.transparent and not (tags.floating and tags.compression != 1 and data[:1] == b"M"):
        with contextlib.suppress(OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return _with_pillow(data, tags)
    try:
        if tags.lab:
            raise ValueError("L*a*b* of more than 8 bits")
        import tifffile
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            values, axes = file.pages[0].asarray(), file.pages[0].axes
    except ImportError:
        raise MediaError(f"{name} is a kind of TIFF ({tags}) that takes the package tifffile to read; install it, or save the file in "
                         "strips of 8 or 16 bit integers") from None
    except Exception as error:  # noqa: BLE001 - damage and whatever its codecs do not know
        raise MediaError(f"{name} is damaged, or a kind of TIFF ({tags}) that cannot be read ({error}); "
                         "save it in strips of 8 or 16 bit integers") from None
    values = np.moveaxis(values, 0, -1) if axes.startswith("S") else values
    if values.dtype.kind not in "uf":
        raise MediaError(f"{name} is a kind of TIFF ({tags}) that is no picture; save it as 8 or 16 bit integers")
    return _frame(~values if values.dtype.kind == "u" and tags.inverted else values, tags), False


def _with_pillow(data: bytes, tags: Tags) -> tuple[av.VideoFrame, bool]:
    with TiffImageFile(io.BytesIO(data)) as picture:           # not Image.open, which refuses large pictures
        picture.load()
        upright = ORIENTATION not in picture.tag_v2            # newer ones have turned it
        if tags.bits <= 8:
            gray = picture.mode in ("1", "L", "LA")
            if picture.mode == "LAB":
                picture = ImageCms.profileToProfile(picture, *map(ImageCms.createProfile, ("LAB", "sRGB")), outputMode="RGB")
            picture = picture.convert(("LA" if gray else "RGBA") if tags.transparent else "L" if gray else "RGB")
        elif picture.mode != "F" and not picture.mode.startswith("I;16"):
            raise ValueError(f"{picture.mode} holds less than is in it")
        values = np.asarray(picture)                           # with white as 0 where there are more than 8 bits
        return _frame(~values if tags.bits > 8 and values.dtype.kind == "u" and tags.inverted else values, tags), upright


def _frame(values: np.ndarray, tags: Tags) -> av.VideoFrame:
    """(H, W) or (H, W, channels) as a picture of 8 or 16 bits or float32. Channels that are neither color nor transparency go."""
    if values.dtype.kind == "u" and values.dtype.itemsize > 2:
        values = values >> 8 * (values.dtype.itemsize - 2)
    kind = "f4" if values.dtype.kind == "f" else "u1" if values.dtype.itemsize == 1 else "u2"
    values = np.atleast_3d(values).astype(kind)[..., :4]
    if tags.transparent and values.shape[2] == 2:
        values = values[..., [0, 0, 0, 1]]
    elif not tags.transparent:
        values = values[..., :3] if values.shape[2] >= 3 else values[..., :1]
    name = _FORMATS[kind][values.shape[2] - 1]
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(values[..., 0] if values.shape[2] == 1 else values), name)
