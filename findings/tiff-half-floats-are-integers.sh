#!/usr/bin/env bash
# FFmpeg takes the bits of half-float TIFF samples for 16-bit integers, and 32-bit integers for floats.
# Expected: an error, or the numbers that are stored (SampleFormat 3 is IEEE floating point). Seen: float16 0.5 (bits 0x3800)
# becomes 14336 of 65535, 1.0 becomes 15360; uint32 samples come out as floats of the same bits.
# Exits with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check av==18.1.0 numpy==2.4.6 tifffile==2026.3.3
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import io, sys
import av
import numpy as np
print("PyAV", av.__version__, "FFmpeg", av.ffmpeg_version_info)
import tifffile


def decoded(data, **options):
    with av.open(io.BytesIO(data)) as file:
        stream = file.streams.video[0]
        stream.codec_context.options = options
        return next(file.decode(stream))


def stored(values):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.full((16, 16, 3), values[0], values[1]), photometric="rgb")
    return decoded(buffer.getvalue())


found = []
for value in (0.5, 1.0):
    frame = stored((value, np.float16))
    found.append((frame.format.name, int(frame.to_ndarray().flat[0])))
    print("float16", value, "->", *found[-1], "of 65535")
frame = stored((2**31, np.uint32))
print("uint32", 2**31, "->", frame.format.name, frame.to_ndarray().flat[0])
sys.exit(found != [("rgb48le", 14336), ("rgb48le", 15360)] or frame.format.name != "rgbf32le")
PYTHON
