"""The packet file of a video that is being written: encoded pictures in whole segments, one behind the other."""
from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple


class Packet(NamedTuple):
    """An encoded picture. Times are in the encoding's time base."""

    pts: int
    duration: int
    key: bool
    data: bytes


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
