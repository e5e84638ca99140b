#!/usr/bin/env bash
# An animated PNG with transparency whose frames are each laid over what was there and taken away again behind themselves (dispose_op 2,
# "previous", blend_op 1, "over"): one opaque square that moves.
# Expected: one square in every frame, as the standard has it (PNG, third edition: what a frame covered is put back before the next one is
# drawn) and as FFmpeg shows it. Seen: Pillow, which wrote the file, leaves a trail where frames are read one after the other: one, one,
# two, three and four squares, without an error; of a file opened anew and sought straight to the last frame it shows one. With
# dispose_op 1 there is one in each, as with blend_op 0. So masks that are made of such a file depend on what was read before.
# Exits with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check Pillow==13.0.0 numpy==2.4.6 av==18.1.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import av
import numpy as np
import PIL
from PIL import Image
print("Pillow", PIL.__version__, "PyAV", av.__version__, "FFmpeg", av.ffmpeg_version_info)
frames = []
for i in range(5):
    values = np.zeros((32, 96, 4), np.uint8)
    values[8:24, 16 * i:16 * i + 16] = 40 * i + 40, 99, 99, 255
    frames.append(Image.fromarray(values))


def opaque(disposal, blend):
    """Squares' worth of opaque pixels in every frame: by FFmpeg, by Pillow in order, and by Pillow that seeks."""
    frames[0].save("a.apng", format="PNG", save_all=True, append_images=frames[1:], duration=100, disposal=disposal, blend=blend)
    data = open("a.apng", "rb").read()
    ops = [(data[at + 28], data[at + 29]) for at in range(len(data)) if data[at:at + 4] == b"fcTL"]
    assert ops == [(disposal, blend)] * 5, ops
    with av.open("a.apng") as file:
        by_ffmpeg = [int((f.to_ndarray(format="rgba")[..., 3] == 255).sum()) / 256 for f in file.decode(video=0)]
    with Image.open("a.apng") as picture:
        in_order = []
        for i in range(5):
            picture.seek(i)
            in_order.append(int((np.asarray(picture.convert("RGBA"))[..., 3] == 255).sum()) / 256)
    with Image.open("a.apng") as picture:
        picture.seek(4)
        sought = int((np.asarray(picture.convert("RGBA"))[..., 3] == 255).sum()) / 256
    print(f"dispose_op {disposal}, blend_op {blend}: FFmpeg {by_ffmpeg}, Pillow {in_order}, Pillow straight to the last {sought}")
    return by_ffmpeg, in_order, sought


one = [1.0] * 5
found = opaque(2, 1)
others = [opaque(1, 1), opaque(2, 0)]
sys.exit(found != (one, [1.0, 1.0, 2.0, 3.0, 4.0], 1.0) or any(each != (one, one, 1.0) for each in others))
PYTHON
