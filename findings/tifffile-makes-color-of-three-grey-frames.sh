#!/usr/bin/env bash
# A clip of grey frames, (frames, height, width), written with tifffile.imwrite, as stacks of microscopes and depth maps are.
# Expected: as many pages as frames. Seen: of 2 and of 5 frames, yes; 3 frames of bytes become one RGB picture whose red, green and blue
# are the frames, and 4 an RGBA one, of which Pillow and FFmpeg show a single picture in color, without a word; those of
# 16 bits and of floats as well. tifffile's own imread gives the array back, so that a test of it passes. photometric="minisblack" keeps them apart.
# Exits with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tifffile==2026.3.3 numpy==2.4.6 Pillow==13.0.0 av==18.1.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import av
import numpy as np
import tifffile
from PIL import Image
import PIL
print("tifffile", tifffile.__version__, "Pillow", PIL.__version__, "PyAV", av.__version__)


def seen(count, kind, **options):
    """(pages by tifffile, mode and pages by Pillow, pixel format by FFmpeg)"""
    frames = np.stack([np.full((32, 48), 40 * i + 40, kind) for i in range(count)])
    tifffile.imwrite("clip.tif", frames, **options)
    assert np.array_equal(tifffile.imread("clip.tif"), frames)
    with tifffile.TiffFile("clip.tif") as file, Image.open("clip.tif") as picture, av.open("clip.tif") as video:
        return len(file.pages), picture.mode, picture.n_frames, next(video.decode(video=0)).format.name


wrong = []
for (count, kind, options), expected in (((2, "u1", {}), (2, "L", 2, "gray")), ((3, "u1", {}), (1, "RGB", 1, "gbrp")),
                                         ((4, "u1", {}), (1, "RGBA", 1, "gbrap")), ((5, "u1", {}), (5, "L", 5, "gray")),
                                         ((3, "u1", {"photometric": "minisblack"}), (3, "L", 3, "gray"))):
    found = seen(count, kind, **options)
    print(f"{count} frames {kind} {options or ''}: pages {found[0]}, Pillow {found[1]} x {found[2]}, FFmpeg {found[3]}")
    wrong += [(count, kind)] if found != expected else []
for kind in ("u2", "f4"):
    tifffile.imwrite("clip.tif", np.zeros((3, 32, 48), kind))
    with tifffile.TiffFile("clip.tif") as file:
        print(f"3 frames {kind}: pages {len(file.pages)}, {file.pages[0].photometric.name}")
        wrong += [kind] if len(file.pages) != 1 else []
sys.exit(f"not as it was: {wrong}" if wrong else 0)
PYTHON
