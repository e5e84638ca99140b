"""What stands in a JPEG file beside its picture: notes of programs, further pictures, a telephone's short video."""
from __future__ import annotations

import contextlib
import io
import re
import struct

from PIL.MpoImagePlugin import MpoImageFile

BROKEN = (OSError, ValueError, SyntaxError, KeyError, TypeError, struct.error)               # what Pillow raises for a damaged file
END_OF_JPEG = b"\xff\xd9"
MORE = bytes(254 - 73 * i % 254 for i in range(2048))          # no marker, and of all kinds: a decoder that reads on makes another picture
GAIN_MAP = "the gain map that makes it HDR"
_GAIN_MAPS = re.compile(rb"hdrgm:|hdrgainmap|iso:ts:21496|infe.{8}tmap", re.DOTALL)          # Adobe's and Google's, Apple's, ISO's, HEIF's
_ANOTHER = re.compile(rb"\xff\xd9\0*\xff\xd8")                # behind a picture's end, listed in an index (MPF) or not
_VIDEO = re.compile(rb"(MotionPhoto|MicroVideo)(=.|>)1|MotionPhoto_Data")


def is_unended(data: bytes, codec: str) -> bool:
    """Whether a JPEG file lacks its end, as those of many cameras do, or has been cut off a little before."""
    return codec == "mjpeg" and bytes(data).rfind(END_OF_JPEG) < bytes(data).rfind(b"\xff\xda")


def has_gain_map(data: bytes) -> bool:
    """Whether a JPEG, AVIF or HEIC file says that it holds one."""
    return bool(_GAIN_MAPS.search(data))


def further(data: bytes) -> tuple[int, str]:
    """(full-sized pictures in the file, what else is in it in words)."""
    pages = 1
    if b"MPF\0" in data:                                       # of several pictures, previews among them
        with contextlib.suppress(*BROKEN, AssertionError), MpoImageFile(io.BytesIO(data)) as picture:
            kinds = [entry["Attribute"]["MPType"] for entry in picture.mpinfo[0xB002]]
            pages = max(1, sum("Thumbnail" not in kind for kind in kinds))
    several = pages > 1 or _ANOTHER.search(data)               # an editor may keep the words without the map
    return pages, " and ".join([GAIN_MAP] * bool(several and has_gain_map(data)) + ["a short video"] * bool(_VIDEO.search(data)))


def without_comments(data: bytes) -> bytes:
    """A JPEG file without what programs keep in it beside the picture, which may be broken where the picture is not."""
    kept, place = data[:2], 2
    while data[place:place + 1] == b"\xff" and data[place + 1:place + 2] != b"\xda":
        marker, length = data[place + 1:place + 2], 2 + int.from_bytes(data[place + 2:place + 4], "big")
        if marker == b"\xff":                                  # fills up
            length = 1
        elif not (b"\xe1" <= marker <= b"\xed" or marker in (b"\xef", b"\xfe")):
            kept += data[place:place + length]
        place += length
    return kept + data[place:]
