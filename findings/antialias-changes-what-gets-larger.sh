#!/usr/bin/env bash
# torch.nn.functional.interpolate(mode="bicubic", antialias=True), as torchvision's resize has it, of a picture that is made larger.
# Expected: antialias keeps what is left out when a picture gets smaller from turning into patterns; of a larger one nothing is left out, so
# it changes nothing, as with bilinear. Seen: it is another cubic, Keys' with -0.5 (Pillow's) in the place of -0.75: an edge rings
# by 11 % without it and by 7 % with it, and noise differs by 0.08. Two tools that both say "bicubic" and scale up differ by it, and a network that
# was trained on the one is off on the other. Exits with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6 Pillow==13.0.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import numpy as np
import PIL
import torch
from PIL import Image
from torch.nn.functional import interpolate
print("PyTorch", torch.__version__, "- Pillow", PIL.__version__)


def keys(row, times, a):
    """One row, `times` as long, with the cubic convolution of parameter a."""
    places = (np.arange(len(row) * times) + 0.5) / times - 0.5
    first = np.floor(places).astype(int)
    result = np.zeros(len(places))
    for tap in range(-1, 3):
        x = abs(places - first - tap)
        near, far = (a + 2) * x ** 3 - (a + 3) * x ** 2 + 1, a * (x ** 3 - 5 * x ** 2 + 8 * x - 4)
        result += np.where(x <= 1, near, far) * row[np.clip(first + tap, 0, len(row) - 1)]
    return result


edge = np.repeat([0.0, 1.0], 16).astype(np.float32)
picture = torch.tensor(np.tile(edge, (32, 1)))[None, None]
noise = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
rings, apart = {}, {}
for antialias in (False, True):
    row = interpolate(picture, scale_factor=4, mode="bicubic", antialias=antialias)[0, 0, 64].numpy()
    off = {a: float(abs(row - keys(edge, 4, a))[16:-16].max()) for a in (-0.5, -0.75)}
    rings[antialias] = float(row.max() - 1), min(off, key=off.get), min(off.values())
    print(f"an edge, 4 times as large, bicubic, antialias={antialias}: rings by {rings[antialias][0]:.4f}, Keys' cubic with {rings[antialias][1]}",
          f"but for {rings[antialias][2]:.0e}")
pillow = np.asarray(Image.fromarray(np.tile(edge, (32, 1))).resize((128, 128), Image.Resampling.BICUBIC))[64]
print(f"Pillow's BICUBIC: rings by {pillow.max() - 1:.4f}")
for mode in ("bicubic", "bilinear"):
    one, other = (interpolate(noise, scale_factor=2, mode=mode, antialias=antialias) for antialias in (False, True))
    apart[mode] = float((one - other).abs().max())
    print(f"noise of 0 to 1, twice as large, {mode}: with and without antialias {apart[mode]:.1e} apart")
sys.exit(not (rings[False][1:2] == (-0.75,) and rings[True][1:2] == (-0.5,) and max(rings[False][2], rings[True][2]) < 1e-5
              and rings[False][0] > 1.4 * rings[True][0] and abs(pillow.max() - 1 - rings[True][0]) < 1e-5
              and apart["bicubic"] > 0.05 and apart["bilinear"] < 1e-5))
PYTHON
