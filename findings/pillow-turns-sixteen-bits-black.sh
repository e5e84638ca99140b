#!/usr/bin/env bash
# 16-bit grey (depth maps, scans; Pillow's mode I;16) turned a little, sheared or put into perspective with Pillow: rotate() and transform().
# Expected: what the same numbers as floats (mode F) give, or "image has wrong mode", as its filters say of such a picture. Seen: with NEAREST it is
# right; with BILINEAR and BICUBIC each value is divided by 512, without a word: 32896 becomes 64, so that the picture is black, and a
# transform that moves nothing does the same; of big-endian files (I;16B) the bytes lie the other way round. resize() knows these modes with every
# filter and turns by 90 degrees are right, so that a test of those passes. Exits with 1 when that changes.
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
from PIL import Image, ImageFilter
print("Pillow", PIL.__version__)
R, T = Image.Resampling, Image.Transform
ramp = np.tile(np.linspace(0, 65535, 256), (256, 1)).astype(np.uint16)
WAYS = {"rotate(0.5)": lambda p, how: p.rotate(0.5, how), "nothing, affine": lambda p, how: p.transform(p.size, T.AFFINE, (1, 0, 0, 0, 1, 0), how),
        "perspective": lambda p, how: p.transform(p.size, T.PERSPECTIVE, (1, 0, 0.5, 0, 1, 0, 1e-5, 0), how),
        "rotate(90)": lambda p, how: p.rotate(90, how), "resize": lambda p, how: p.resize((200, 100), how)}
found = {}
for way, change in WAYS.items():
    for how in (R.NEAREST, R.BILINEAR, R.BICUBIC):
        seen, right = (np.asarray(change(Image.fromarray(ramp.astype(kind)), how)).astype(float) for kind in ("<u2", "<f4"))
        here = tuple(size // 2 for size in right.shape)
        bright = seen.mean() / right.mean()
        near = np.median(np.abs(seen - right)) <= 2 and abs(bright - 1) < 0.001             # NEAREST may take another neighbour
        found[way, how] = "right" if near else round(bright * 512, 1)
        print(f"{way}, {how.name}: {right[here]:.0f} of floats, {seen[here]:.0f} of 16 bits;", "right" if near else f"{bright:.4f} of its brightness")
big = Image.fromarray(ramp.astype(">u2"))
turned = np.asarray(big.rotate(0.5, R.BILINEAR))[128, 64:200:68].tolist()
print(f"{big.mode}, rotate(0.5), BILINEAR: {ramp[128, 64:200:68].tolist()} become {turned}")
try:
    said = Image.fromarray(ramp).filter(ImageFilter.GaussianBlur(1)).mode
except ValueError as error:
    said = str(error)
print("a filter:", said)
broken = [(way, how) for way in list(WAYS)[:3] for how in (R.BILINEAR, R.BICUBIC)]
sys.exit(not (all((found[key] == "right") == (key not in broken) for key in found) and all(0.9 < found[key] < 1.1 for key in broken)
              and max(abs(seen - int(value)) for seen, value in zip(turned, ramp[128, 64:200:68])) > 5000))
PYTHON
