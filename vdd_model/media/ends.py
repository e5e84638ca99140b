"""Whether a file goes as far as its format says it does. FFmpeg passes over the frame in which one ends without a word."""
from __future__ import annotations

import os
from pathlib import Path

_SEGMENT = 0x18538067                                          # Matroska: what holds all else


def ends_early(path: Path, family: str, stop: int) -> bool:
    """Whether the last bytes of a file, of the format that FFmpeg calls `family`, are the beginning of something longer. `stop`: where
    the video's last packet ends, in bytes.
    """
    names, size = set(family.split(",")), path.stat().st_size
    with path.open("rb") as file:
        if "matroska" in names:
            return _matroska(file, size)
        if "mpegts" in names:
            return _transport_stream(file, size)
        if "rm" in names:
            return _chunks(file, size)
        if "yuv4mpegpipe" in names:                            # a frame's head and nothing behind it is the same
            file.seek(stop)
            return file.read(5) == b"FRAME"
    return "dv" in names and stop > size


def _matroska(file, size: int) -> bool:
    """Elements: a number, a length, content; a live recording does not know the length of its outer ones."""
    place = 0
    while place < size:
        file.seek(place)
        head = file.read(12)
        name = 9 - head[0].bit_length()                        # bytes of the number; as many zeros stand in front of its first one
        if name > 4 or len(head) <= name:
            return False
        count = 9 - head[name].bit_length()
        digits = head[name:name + count]
        if count > 8 or len(digits) < count:
            return count <= 8
        length = int.from_bytes(digits, "big") & (1 << 7 * count) - 1
        place += name + count
        if length != (1 << 7 * count) - 1:
            place += length
            if int.from_bytes(head[:name], "big") == _SEGMENT:
                break
    return place > size


def _transport_stream(file, size: int) -> bool:
    """Packets of one length, each of which begins with the letter G; cameras put a time of 4 bytes in front."""
    head = file.read(5 * 204)
    for length in (188, 192, 204):
        for start in range(min(length, len(head))):
            if head[start::length][:4] == b"GGGG":
                rest = (size - start) % length
                file.seek(-rest, os.SEEK_END)
                return 0 < rest < 188 and file.read(1) == b"G"         # behind 188 bytes stand sums, or the time of a next one
    return False


def _chunks(file, size: int) -> bool:
    """RealMedia: four letters, the chunk's length, content. FFmpeg says 10 bytes too many."""
    place = 0
    while place < size:
        file.seek(place)
        head = file.read(8)
        length = int.from_bytes(head[4:], "big")
        if len(head) < 8 or length < 8 or not head[:1].isascii():
            return False
        place += length
    return place > size + 10
