#!/usr/bin/env bash
# rgbf32le, to which FFmpeg decodes float TIFF files, loses all below 0, above 1 and beyond 16 bits in reformat(format="gbrpf32le").
# Expected: the same numbers in another order, both being 32-bit floats. Seen: libswscale takes them through 16-bit integers: -1
# becomes 0, 2.5 becomes 0.99995, 0.1 becomes 0.10002. to_ndarray() of the decoded frame keeps them.
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


values = np.array([-1.0, 0.1, 0.5, 2.5], np.float32)
buffer = io.BytesIO()
tifffile.imwrite(buffer, np.repeat(values, 64 * 3).reshape(16, 16, 3), photometric="rgb")
frame = decoded(buffer.getvalue())
kept = frame.to_ndarray()[::4, 0, 0]
changed = frame.reformat(format="gbrpf32le").to_ndarray()[::4, 0, 0]
print(frame.format.name, kept, "-> gbrpf32le", [round(float(x), 7) for x in changed])
sys.exit(bool(frame.format.name != "rgbf32le" or not np.array_equal(kept, values) or changed[0] != 0 or changed[3] > 1 or changed[1] == values[1]))
PYTHON
