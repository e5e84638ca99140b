#!/usr/bin/env bash
# Phones and cameras keep streams of data beside the picture (Apple's `mebx`, Google's `camm`). Copied into .mp4 FFmpeg refuses them; copied
# into .mov it takes the packets, reports no error, and writes four zero bytes where the stream's kind stood, so that no program knows what
# they are any more. A GoPro's `gpmd`, which FFmpeg has a name for, keeps it in both. Exits non-zero if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet av==18.1.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
from fractions import Fraction
from pathlib import Path

import av
import av.logging

av.logging.set_level(av.logging.PANIC)
print("PyAV", av.__version__, "FFmpeg", av.ffmpeg_version_info)

# a clip whose track of a time code, one packet of four bytes, gets another kind
with av.open("timecode.mp4", "w") as out:
    stream = out.add_stream("mpeg4", rate=25)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
    stream.metadata["timecode"] = "01:00:00:00"
    for i in range(5):
        frame = av.VideoFrame(64, 48, "yuv420p")
        frame.pts, frame.time_base = i, Fraction(1, 25)
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))
data = Path("timecode.mp4").read_bytes()


def copied(kind: bytes, muxer: str) -> str:
    """How the stream of data fares."""
    Path("in.mp4").write_bytes(data.replace(b"tmcd", kind))
    name = f"out.{muxer}"
    try:
        with av.open("in.mp4") as source, av.open(name, "w", format=muxer) as out:
            streams = [s for s in source.streams if s.type in ("video", "data")]
            copies = {s.index: out.add_stream_from_template(s) for s in streams}
            for packet in source.demux(streams):
                if packet.size and packet.dts is not None:
                    packet.stream = copies[packet.stream_index]
                    out.mux(packet)
    except (av.FFmpegError, ValueError):
        return "refused"
    with av.open(name) as file:
        streams = [s for s in file.streams if s.type == "data"]
        count = sum(bool(p.size) for p in file.demux(streams))
    return f"{count} packet, its kind {'kept' if kind in Path(name).read_bytes() else 'gone'}"


found = {(kind, muxer): copied(kind, muxer) for kind in (b"mebx", b"camm", b"gpmd") for muxer in ("mp4", "mov")}
for (kind, muxer), what in found.items():
    print(f"{kind.decode()} into .{muxer}: {what}")
expected = {"mp4": "refused", "mov": "1 packet, its kind gone"}
if any(what != ("1 packet, its kind kept" if kind == b"gpmd" else expected[muxer]) for (kind, muxer), what in found.items()):
    sys.exit("it has changed")
PYTHON
