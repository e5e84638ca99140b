#!/usr/bin/env bash
# Colors that stand in the container only are gone from PyAV's stream once its first frame is decoded: the decoder writes "unspecified"
# (2) over them, and its frames never had them. It depends on the codec: HEVC and ProRes lose them, H.264 and FFV1 keep them. So they have
# to be read before a frame is decoded. Exits non-zero if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet av==18.1.0 numpy==2.2.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import av
import numpy as np

print("PyAV", av.__version__, "FFmpeg", av.ffmpeg_version_info)
LOSE, KEEP = {"libx265", "prores_ks"}, {"libx264", "ffv1"}
wrong = []
for codec, pix_fmt, name in (("libx265", "yuv420p10le", "a.mp4"), ("prores_ks", "yuv422p10le", "b.mov"), ("libx264", "yuv420p10le", "c.mp4"),
                             ("ffv1", "yuv420p10le", "d.mkv")):
    with av.open(name, "w") as out:
        stream = out.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 96, pix_fmt
        if codec == "libx265":
            stream.options = {"x265-params": "log-level=none:colorprim=unknown:transfer=unknown:colormatrix=unknown"}
        if codec == "libx264":
            stream.options = {"x264-params": "colorprim=undef:transfer=undef:colormatrix=undef"}
        context = stream.codec_context
        context.color_primaries, context.color_trc, context.colorspace = 9, 16, 9
        frame = av.VideoFrame(128, 96, pix_fmt)
        for plane in frame.planes:
            plane.update(np.full(plane.buffer_size // 2, 512, "<u2").tobytes())
        frame.pts = 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            out.mux(packet)
    with av.open(name) as file:
        context = file.streams.video[0].codec_context
        tags = lambda: (int(context.color_primaries), int(context.color_trc), int(context.colorspace))
        before = tags()
        next(file.decode(video=0))
        after = tags()
    print(f"{codec:10} {name}: primaries, transfer, matrix {before} before the first frame, {after} behind it")
    if before != (9, 16, 9) or (after != before) != (codec in LOSE):
        wrong.append(codec)
if wrong:
    sys.exit(f"not as it was: {wrong}")
print("as it was")
PYTHON
