#!/usr/bin/env bash
# Pillow turns a TIFF file with an orientation tag upright when it is loaded, but not a JPEG or PNG file.
# Expected: one rule for all formats (ImageOps.exif_transpose is there to be called). Seen: a TIFF file has its size swapped when
# opened, and load() turns it and
# drops the tag, so who turns pictures by the tag read beforehand turns TIFF files twice.
# Exits with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check Pillow==13.0.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import io, sys
import PIL
from PIL import Image

print("Pillow", PIL.__version__)
found = {}
for kind in ("TIFF", "JPEG", "PNG"):
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48)).save(buffer, kind, exif=exif)
    image = Image.open(io.BytesIO(buffer.getvalue()))
    before = image.size, image.getexif().get(0x0112)
    image.load()
    found[kind] = image.size
    print(kind, "opened:", *before, "- loaded:", image.size, image.getexif().get(0x0112))
sys.exit(found != {"TIFF": (48, 64), "JPEG": (64, 48), "PNG": (64, 48)})
PYTHON
