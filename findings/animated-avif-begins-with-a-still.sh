#!/usr/bin/env bash
# An animated AVIF, as Pillow writes it, opened with FFmpeg: which stream is the clip?
# Expected: the first one, as in every other video file, and one with an alpha plane where it is transparent. Seen: stream 0 is the still
# picture that stands for the file, of one frame and rate 1; the frames are in the second stream, or behind a still of the alpha in the
# third, and their alpha is a grey stream of its own. All but one call themselves default, so decode(video=0) is a single picture,
# without an error. Exits with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check av==18.1.0 numpy==2.4.6 Pillow==13.0.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import av
import numpy as np
import PIL
from PIL import Image
print("Pillow", PIL.__version__, "PyAV", av.__version__, "FFmpeg", av.ffmpeg_version_info)
found = {}
for mode in ("RGB", "RGBA"):
    pictures = [Image.fromarray(np.random.default_rng(i).integers(0, 255, (64, 64, len(mode)), np.uint8), mode) for i in range(6)]
    pictures[0].save("a.avif", save_all=True, append_images=pictures[1:], duration=40)
    with av.open("a.avif") as file:
        number = len(file.streams.video)
        best = file.streams.best("video").index
    found[mode] = best, []
    for index in range(number):
        with av.open("a.avif") as file:
            stream = file.streams.video[index]
            rate, default = int(stream.average_rate), bool(stream.disposition & av.stream.Disposition.default)
            frames = list(file.decode(stream))
            found[mode][1].append((len(frames), rate, frames[0].format.name, default))
    print(f"{mode}: streams (frames, rate, format, default) {found[mode][1]}, the best one is {best}")
still, clip = (1, 1, "yuv420p", True), (6, 25, "yuv420p", True)
expected = {"RGB": (1, [still, clip]), "RGBA": (2, [still, (1, 1, "gray", False), clip, (6, 25, "gray", True)])}
sys.exit(f"not as it was, expected {expected}" if found != expected else 0)
PYTHON
