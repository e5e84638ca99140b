#!/usr/bin/env bash
# The same grey ramp in TIFF files that count from white (PhotometricInterpretation 0, as scanners write them), with 8 and with 16 bits.
# Expected: one picture from dark to bright, whoever reads it. Seen: Pillow turns the values of 8 bits around, as FFmpeg does, and hands
# those of 16 bits over as they are stored: mode I;16, bright where the picture is dark, without a word; FFmpeg turns those around too.
# So a reader that takes I;16 for 0 = black shows negatives of deep scans only.
# Exits with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check Pillow==13.0.0 numpy==2.4.6 av==18.1.0 tifffile==2026.3.3
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import av
import numpy as np
import PIL
import tifffile
from PIL import Image
print("Pillow", PIL.__version__, "PyAV", av.__version__, "FFmpeg", av.ffmpeg_version_info)
ramp, found = np.tile(np.linspace(0, 1, 64), (16, 1)), {}
for kind, most in (("u1", 255), ("u2", 65535)):
    tifffile.imwrite("a.tif", most - np.rint(ramp * most).astype(kind), photometric="miniswhite", metadata=None)
    by_pillow = np.asarray(Image.open("a.tif")).astype(float) / most
    with av.open("a.tif") as file:
        frame = next(file.decode(video=0))
    by_ffmpeg = frame.to_ndarray().astype(float) / most
    found[kind] = [name for name, values in (("as meant", ramp), ("a negative", 1 - ramp))
                   for each in (by_pillow, by_ffmpeg) if np.abs(each - values).max() < 0.01]
    ends = [f"{each[0, 0]:.2f} to {each[0, -1]:.2f}" for each in (by_pillow, by_ffmpeg)]
    print(f"{kind}: Pillow, {Image.open('a.tif').mode}: {ends[0]}; FFmpeg, {frame.format.name}: {ends[1]}; meant 0.00 to 1.00")
sys.exit(found != {"u1": ["as meant", "as meant"], "u2": ["as meant", "a negative"]})
PYTHON
