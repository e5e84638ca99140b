#!/usr/bin/env bash
# Pillow cuts 16-bit grey off at 255 in convert("RGB") or convert("L"): nearly all of a photograph turns white, without an error.
# Expected: values scaled to 8 bits, as for 16-bit RGB files, which Pillow reads as their upper bytes. Seen: 256 and above are 255.
# Depth maps, scans and data sets in 16-bit PNG are opened this way.
# Exits with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check Pillow==13.0.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import io, sys
import numpy as np
import PIL
from PIL import Image

print("Pillow", PIL.__version__)
values = np.array([0, 128, 255, 256, 32768, 65535], np.uint16)
buffer = io.BytesIO()
Image.fromarray(values[None].repeat(2, 0)).save(buffer, "PNG")
image = Image.open(io.BytesIO(buffer.getvalue()))
found = {mode: np.asarray(image.convert(mode)).reshape(2, 6, -1)[0, :, 0].tolist() for mode in ("L", "RGB")}
print(image.mode, values.tolist(), "->", found)
sys.exit(any(row != [0, 128, 255, 255, 255, 255] for row in found.values()))
PYTHON
