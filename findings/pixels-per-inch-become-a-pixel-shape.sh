#!/usr/bin/env bash
# FFmpeg takes 300 x 150 pixels per inch of a JPEG or PNG file for pixels twice as wide as high; they are half as wide.
# Of pixels that are half as wide there are twice as many in an inch across, so the sample aspect ratio is 1:2, and for the same
# resolution in a TIFF file FFmpeg says 1:2. Expected: 1:2 for all three. Seen: 2:1 for JPEG and (rounded to pixels per metre) PNG.
# Exits with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check av==18.1.0 numpy==2.4.6 Pillow==13.0.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import io, sys
import av
import numpy as np
print("PyAV", av.__version__, "FFmpeg", av.ffmpeg_version_info)
from PIL import Image

found = {}
for kind in ("JPEG", "PNG", "TIFF"):
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48)).save(buffer, kind, dpi=(300, 150))
    with av.open(io.BytesIO(buffer.getvalue())) as file:
        found[kind] = float(file.streams.video[0].sample_aspect_ratio)
    print(kind, "300 x 150 per inch -> sample aspect ratio", round(found[kind], 3))
sys.exit({kind: round(value, 2) for kind, value in found.items()} != {"JPEG": 2.0, "PNG": 2.0, "TIFF": 0.5})
PYTHON
