#!/usr/bin/env bash
# Transport streams of two recorders, one behind the other with streams of other numbers (PIDs): what begins behind the part that FFmpeg looks
# at first is not among PyAV's streams, also afterwards; `demux` of all that are there gives the first recording's packets alone, and may end
# in an IndexError in the place of its last, empty packet. `dumps_format` lists the new streams. Exits non-zero if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet av==18.1.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import av
import av.logging

print("PyAV", av.__version__, "FFmpeg", av.ffmpeg_version_info)
for name, codec, options in (("a.ts", "libx264", {}), ("b.ts", "libx265", {"mpegts_start_pid": "512", "mpegts_pmt_start_pid": "4352"})):
    with av.open(name, "w", options=options) as out:
        stream = out.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        for number in range(50):
            frame = av.VideoFrame(64, 48, "yuv420p")
            for plane in frame.planes:
                plane.update(bytes([100 + number]) * plane.buffer_size)
            frame.pts = number
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
with open("joined.ts", "wb") as file:
    file.write(open("a.ts", "rb").read() + open("b.ts", "rb").read())
with av.open("joined.ts") as file:
    count, ended = 0, "by itself"
    try:
        for packet in file.demux(list(file.streams)):
            count += packet.size > 0
    except IndexError:
        ended = "in an IndexError"
    av.logging.set_level(av.logging.INFO)
    shown = len(file.streams)
    print(f"{count} packets, the demuxer ended {ended}; streams of PyAV: {shown}")
    dump = file.dumps_format()
print(dump)
if (count, shown) != (50, 1) or "Stream #0:1" not in dump:
    sys.exit("not as it was")
print("as it was")
PYTHON
