#!/usr/bin/env bash
# FFmpeg decodes CMYK JPEGs and lossless WebPs without transparency to pixel formats that have an alpha channel.
# Expected: a format without alpha, as both files say (a JPEG file cannot be transparent; bit alpha_is_used of the WebP file is 0).
# Seen: gbrap and argb, all 255, so the pixel format does not tell whether a picture is transparent.
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


def decoded(data, **options):
    with av.open(io.BytesIO(data)) as file:
        stream = file.streams.video[0]
        stream.codec_context.options = options
        return next(file.decode(stream))


found = {}
for kind, mode, keys in (("JPEG", "CMYK", {}), ("WEBP", "RGB", {"lossless": True})):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)).convert(mode).save(buffer, kind, **keys)
    frame = decoded(buffer.getvalue())
    found[kind] = frame.format.name
    print(kind, mode, "->", frame.format.name, "- alpha:", np.unique(frame.to_ndarray(format="rgba")[..., 3]))
    if kind == "WEBP":
        print("alpha_is_used:", buffer.getvalue()[24] >> 4 & 1)
sys.exit(found != {"JPEG": "gbrap", "WEBP": "argb"})
PYTHON
