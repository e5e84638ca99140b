#!/usr/bin/env bash
# Two pictures of floats (depth, light, differences; Pillow's mode F) laid over one another with a soft mask: paste(picture, mask) and composite().
# Expected: values between the two, as of bytes, or "image has wrong mode", as Image.blend says of them. Seen: each of the four bytes of a number is
# blended by itself, exponent and all, without a word: half of 1.0 and half of 2.0 is 3.0, half of 200 and of 300 is 239, and of 0.25 and
# 0.75 it is 0.875. The same holds of whole numbers above 255 (I): 200 and 300 give 378. A mask of 0 and 255 alone is right, so that only seams show
# it. Of 16 bits (I;16) what comes through a mask of bytes, hard or soft, lands at half its column besides: pasted at column 8 it lies at 4 and is
# half as wide. Exits with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check Pillow==13.0.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import numpy as np
import PIL
from PIL import Image
print("Pillow", PIL.__version__)


def blended(kind, below, above, mask):
    """What paste and composite make of two flat pictures."""
    first, second = (Image.fromarray(np.full((8, 8), value, kind)) for value in (below, above))
    weights = Image.new("L", first.size, mask)
    pasted = first.copy()
    pasted.paste(second, (0, 0), weights)
    whole = Image.composite(second, first, weights)
    assert (np.asarray(pasted) == np.asarray(whole)).all()
    return first.mode, np.asarray(pasted)[4, 4].item()


found = {}
for kind, below, above in (("u1", 100, 200), ("<i4", 100, 200), ("<i4", 200, 300), ("<f4", 1.0, 2.0), ("<f4", 200.0, 300.0), ("<f4", 0.25, 0.75)):
    values = []
    for mask in (0, 64, 128, 192, 255):
        mode, value = blended(kind, below, above, mask)
        values.append(round(value, 4))
    found[mode, below] = values
    print(f"{mode}: {below} under {above}, masks of 0, 64, 128, 192, 255: {values}")
try:
    said = Image.blend(*(Image.fromarray(np.full((8, 8), value, "<f4")) for value in (1.0, 2.0)), 0.5).mode
except ValueError as error:
    said = str(error)
print("Image.blend of floats:", said)
places = {}
for kind in ("u1", "<i4", "<f4", "<u2"):
    picture, patch = (Image.fromarray(np.full((4, width), value, kind)) for width, value in ((16, 10), (6, 20)))
    picture.paste(patch, (8, 0), Image.new("L", patch.size, 255))
    places[picture.mode] = np.flatnonzero(np.asarray(picture)[2] == 20).tolist()
    print(f"{picture.mode}: six columns pasted at column 8 through a white mask lie at", places[picture.mode])
sys.exit(not (all(values[0] == key[1] for key, values in found.items())
              and found["L", 100] == found["I", 100] == [100, 125, 150, 175, 200] and found["I", 200] == [200, 161, 378, 339, 300]
              and found["F", 1.0] == [1, 0.875, 3, 2.5, 2] and found["F", 200.0] == [200, 220, 239, 262, 300] and found["F", 0.25][2] == 0.875
              and all(where == ([4, 5, 6] if mode == "I;16" else [8, 9, 10, 11, 12, 13]) for mode, where in places.items())))
PYTHON
