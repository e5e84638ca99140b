#!/usr/bin/env bash
# Six frames with repeats (as 24 from 12 per second), saved by Pillow with save_all=True, append_images and a duration for each.
# Expected: six frames come back, so that the fourth one still pairs with the fourth one of another clip. Seen: GIF, PNG and WebP keep three
# longer ones, without a word and without an option; AVIF and TIFF keep six. Of WebP and AVIF `info` has no duration until a frame is
# loaded; of GIF and PNG it is there after seek. Exits with 1 when that changes.
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
from PIL import Image
print("Pillow", PIL.__version__)
distinct = [Image.fromarray(np.random.default_rng(i).integers(0, 255, (64, 64, 3), np.uint8)) for i in range(3)]
clip = [distinct[i] for i in (0, 0, 1, 1, 1, 2)]
found = {}
for suffix in ("gif", "png", "webp", "avif", "tiff"):
    options = {"lossless": True} if suffix == "webp" else {}
    clip[0].save(f"a.{suffix}", save_all=True, append_images=clip[1:], duration=[40] * 6, **options)
    with Image.open(f"a.{suffix}") as file:
        after_seek, loaded = [], []
        for index in range(file.n_frames):
            file.seek(index)
            after_seek.append(file.info.get("duration"))
            file.load()
            loaded.append(file.info.get("duration"))
        found[suffix] = file.n_frames, after_seek, loaded
    print(f"{suffix:5} frames {found[suffix][0]}, durations after seek {after_seek}, when loaded {loaded}")
once, each = [80, 120, 40], [40] * 6
expected = {"gif": (3, once, once), "png": (3, once, once), "webp": (3, [None] * 3, once), "avif": (6, [None] * 6, each),
            "tiff": (6, [None] * 6, [None] * 6)}
sys.exit(f"not as it was, expected {expected}" if found != expected else 0)
PYTHON
