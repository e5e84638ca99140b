#!/usr/bin/env bash
# Two recordings of H.264 joined by copying, one that says "full range" and one that says nothing (which means limited): FFmpeg's decoder
# calls the frames of the second full too where it comes behind, since a header that says nothing changes nothing; where it comes in front,
# its last frames, which the decoder still holds, are called full already. HEVC's decoder tells each frame's own. Two decoders, one for each
# header, tell it for H.264 too. Exits non-zero if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet av==18.1.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import av

print("PyAV", av.__version__, "FFmpeg", av.ffmpeg_version_info)


def record(name, codec, value):
    with av.open(name, "w") as out:
        stream = out.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.options = {"x264-params": "bframes=2:b-adapt=0:scenecut=0"} if codec == "libx264" else {"x265-params": "log-level=none"}
        stream.codec_context.color_range = value
        for number in range(9):
            frame = av.VideoFrame(64, 48, "yuv420p")
            for plane in frame.planes:
                plane.update(bytes([100 + 9 * number]) * plane.buffer_size)
            frame.pts, frame.color_range = number, value
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


found = []
for codec, suffix in (("libx264", ".h264"), ("libx265", ".hevc")):
    for order in ((2, 0), (0, 2)):
        for value in order:
            record(f"{value}{suffix}", codec, value)
        with open(f"joined{suffix}", "wb") as file:
            file.write(b"".join(open(f"{value}{suffix}", "rb").read() for value in order))
        with av.open(f"joined{suffix}") as file:
            said = "".join("f" if frame.color_range == 2 else "-" for frame in file.decode(video=0))
        alone = ""
        for value in order:
            with av.open(f"{value}{suffix}") as file:
                alone += "".join("f" if frame.color_range == 2 else "-" for frame in file.decode(video=0))
        print(f"{codec} {['full in front', 'full behind'][order[0] == 0]:13} joined {said}, each alone {alone} (f: full range)")
        found.append((said == alone, len(said) == len(alone) == 18))
if found != [(False, True), (False, True), (True, True), (True, True)]:
    sys.exit("not as it was")
print("as it was")
PYTHON
