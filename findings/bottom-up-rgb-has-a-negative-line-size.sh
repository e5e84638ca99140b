#!/usr/bin/env bash
# An uncompressed RGB AVI with its rows from the bottom, Windows' usual order, gives frames with a negative line size. What the buffer of
# such a plane holds depends on PyAV: up to 17.0 it starts at the top row, which is the last in memory, and reaches beyond the picture (it is
# only measured here, not read); 18.1 starts it at the bottom row, so that its rows stand upside down. to_ndarray in another format, or
# hflip twice, gives them from the top. Exits non-zero if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/look.py" <<'PYTHON'
import struct
import sys

import av
import numpy as np

picture = np.arange(48 * 64 * 3).reshape(48, 64, 3).astype(np.uint8)
with av.open("a.avi", "w") as out:
    stream = out.add_stream("rawvideo", rate=25)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "bgr24"
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[::-1, :, ::-1]), format="bgr24")
    frame.pts = 0
    for packet in [*stream.encode(frame), *stream.encode(None)]:
        out.mux(packet)
data = bytearray(open("a.avi", "rb").read())
at = data.index(b"strf") + 16
data[at:at + 4] = struct.pack("<i", 48)                        # biHeight: positive means from the bottom
open("a.avi", "wb").write(data)
with av.open("a.avi") as file:
    frame = next(file.decode(video=0))
    plane = frame.planes[0]
    start = np.frombuffer(plane, np.uint8).ctypes.data - plane.buffer_ptr
    converted = np.array_equal(frame.to_ndarray(format="rgb24"), picture)
    graph = av.filter.Graph()
    source = graph.add_buffer(width=64, height=48, format="bgr24", time_base=file.streams.video[0].time_base)
    graph.link_nodes(source, graph.add("hflip"), graph.add("hflip"), graph.add("buffersink")).configure()
    graph.push(frame)
    again = graph.pull()
    flipped = again.planes[0].line_size > 0 and np.array_equal(
        np.frombuffer(again.planes[0], np.uint8).reshape(48, -1)[:, :192].reshape(48, 64, 3)[..., ::-1], picture)
print("PyAV", av.__version__, "line size", plane.line_size, "buffer starts", start, "bytes from the top row; to_ndarray(rgb24) right:",
      converted, "hflip twice right:", flipped)
expected = {"17.0.0": 0, "18.1.0": -47 * 192}[av.__version__]
sys.exit(0 if plane.line_size == -192 and start == expected and converted and flipped else 1)
PYTHON
cd "$folder"
for version in 17.0.0 18.1.0; do
    python3 -m venv "$folder/venv-$version"
    "$folder/venv-$version/bin/pip" install --quiet "av==$version" numpy==2.2.6
    "$folder/venv-$version/bin/python" look.py
done
echo "as it was"
