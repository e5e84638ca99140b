#!/usr/bin/env bash
# VideoFrame.reformat and to_ndarray of yuv420p or yuv422p in another 8-bit RGB than rgb24 or bgr24, where the width is no multiple of 16.
# Expected: every pixel is converted. Seen: the last columns are never written and hold what lay in memory before: of rgba and bgra where
# the width is 1 to 4 above a multiple of 16 (340 x 256, as Kinetics is often shrunk to), of gbrp 1 to 8 above (854, 360, 1080), if the
# height is even; no error. libswscale leaves columns away where rows have no room behind their end, and PyAV's rows have little.
# Exits with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check av==18.1.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import av
import numpy as np
print("PyAV", av.__version__, "FFmpeg", av.ffmpeg_version_info)


def missing(width, height, source, wanted):
    """Columns at the right that differ from the rest in pictures of one color, for any of ten colors."""
    found = set()
    for color in range(30, 230, 20):
        frame = av.VideoFrame(width, height, source)
        for plane in frame.planes:
            plane.update(bytes([color]) * plane.buffer_size)
        picture = frame.to_ndarray(format=wanted) if wanted in ("rgba", "bgra", "rgb24") else frame.reformat(format=wanted).to_ndarray()
        different = np.abs(picture.astype(int) - picture[0, 0]).max((0, 2)) > 8
        found.update((width - np.flatnonzero(different)).tolist())
    return max(found, default=0)


found = {}
for source in ("yuv420p", "yuv422p"):
    for wanted in ("rgb24", "rgba", "bgra", "gbrp"):
        for width, height in ((340, 256), (854, 480), (360, 640), (1080, 1920), (640, 360), (340, 255)):
            found[source, wanted, width, height] = missing(width, height, source, wanted)
        print(f"{source} -> {wanted:5}", {f"{w} x {h}": n for (s, d, w, h), n in found.items() if (s, d) == (source, wanted)}, "columns missing")
wrong = []
for (source, wanted, width, height), count in found.items():
    over, reach = width % 16, {"rgb24": 0, "gbrp": 8}.get(wanted, 4)
    if count != (over if 0 < over <= reach and not height % 2 else 0):
        wrong.append((source, wanted, width, height, count))
with av.open("a.mp4", "w") as out:                     # the same with frames that a decoder made
    stream = out.add_stream("libx264", rate=25)
    stream.width, stream.height, stream.pix_fmt = 340, 256, "yuv420p"
    frame = av.VideoFrame.from_ndarray(np.full((256, 340, 3), 200, np.uint8), "rgb24")
    for packet in [*stream.encode(frame), *stream.encode(None)]:
        out.mux(packet)
with av.open("a.mp4") as file:
    frame = next(file.decode(video=0))
    av.VideoFrame.from_ndarray(np.zeros((256, 340, 4), np.uint8), "rgba")
    pictures = {name: frame.to_ndarray(format=name)[..., :3].astype(int) for name in ("rgb24", "rgba")}
off = np.flatnonzero(np.abs(pictures["rgb24"] - pictures["rgba"]).max((0, 2)) > 8)
print("a decoded clip of 340 x 256: columns of rgba that are not those of rgb24:", off.tolist())
if wrong or off.tolist() != [336, 337, 338, 339]:
    sys.exit(f"not as it was: {wrong}")
print("as it was")
PYTHON
