#!/usr/bin/env bash
# Tiled TIFF files decode to a black picture with FFmpeg, without an error.
# Expected: the picture, or an error. Seen: all values 0, no exception, is_corrupt not set. Pillow
# reads the same bytes rightly. Tiles are what libvips, GDAL, Nuke and microscopes write.
# Exits with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check av==18.1.0 numpy==2.4.6 Pillow==13.0.0 tifffile==2026.3.3
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import io, sys
import av
import numpy as np
print("PyAV", av.__version__, "FFmpeg", av.ffmpeg_version_info)
from PIL import Image
import tifffile


def decoded(data, **options):
    with av.open(io.BytesIO(data)) as file:
        stream = file.streams.video[0]
        stream.codec_context.options = options
        return next(file.decode(stream))


picture = np.random.default_rng(0).integers(1, 255, (64, 96, 3), np.uint8)
wrong = []
for tile in (None, (16, 16)):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, picture, photometric="rgb", tile=tile)
    frame = decoded(buffer.getvalue())
    values = frame.to_ndarray(format="rgb24")
    pillow = np.asarray(Image.open(io.BytesIO(buffer.getvalue())))
    print("tiles" if tile else "strips", "- FFmpeg: largest value", values.max(), "corrupt:", frame.is_corrupt,
          "- Pillow equal to what was written:", np.array_equal(pillow, picture))
    wrong.append(not values.any() and not frame.is_corrupt and np.array_equal(pillow, picture))
sys.exit(wrong != [False, True])
PYTHON
