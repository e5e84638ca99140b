#!/usr/bin/env bash
# Pillow reads big-endian float TIFF files with LZW compression in the wrong order of bytes, without an error.
# Expected: 0.5, as from the same file without compression and from the little-endian one. Seen: 8.8e-44.
# Exits with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check Pillow==13.0.0 numpy==2.4.6 tifffile==2026.3.3 imagecodecs==2026.3.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import io, sys
import numpy as np
import PIL
import tifffile
from PIL import Image

print("Pillow", PIL.__version__)
found = {}
for order in "<>":
    for compression in (None, "lzw"):
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, np.full((16, 16), 0.5, np.float32), compression=compression, byteorder=order)
        found[order, compression] = float(np.asarray(Image.open(io.BytesIO(buffer.getvalue())))[0, 0])
        print({"<": "little", ">": "big"}[order] + "-endian,", compression, "->", found[order, compression])
sys.exit([value == 0.5 for value in found.values()] != [True, True, True, False])
PYTHON
