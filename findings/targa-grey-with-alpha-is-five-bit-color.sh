#!/usr/bin/env bash
# A Targa file of 8-bit grey with 8-bit alpha (type 3, 16 bits a pixel) decodes as 5-bit color with FFmpeg.
# Expected: ya8, or an error. Seen: rgb555le, so that grey 200 with full alpha becomes a color. The type in the header's third byte
# says that it is grey; Pillow reads it.
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

buffer = io.BytesIO()
Image.new("LA", (16, 16), (200, 255)).save(buffer, "TGA")
data = buffer.getvalue()
frame = av.CodecContext.create("targa", "r").decode(av.Packet(data))[0]
color = frame.to_ndarray(format="rgb24")[0, 0].tolist()
pillow = Image.open(io.BytesIO(data)).getpixel((0, 0))
print("type", data[2], "bits", data[16], "- FFmpeg:", frame.format.name, color, "- Pillow:", pillow)
sys.exit((data[2], data[16], frame.format.name, pillow) != (3, 16, "rgb555le", (200, 255)) or len(set(color)) == 1)
PYTHON
