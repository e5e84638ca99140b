#!/usr/bin/env bash
# A JPEG that is cut off at half decodes to a whole picture with FFmpeg, the lower half flat, without an error.
# Expected: an exception, or a frame that says it is corrupt. Seen: neither. The decoder's option err_detect=explode raises, and
# takes a file that lacks only its end marker; Pillow raises for both. PNG and WebP cut in the same way raise in FFmpeg.
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


def outcome(function):
    try:
        return "corrupt" if function().is_corrupt else "whole"
    except Exception as error:
        return type(error).__name__


picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8))
found = {}
for kind in ("JPEG", "PNG", "WEBP"):
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    data = buffer.getvalue()
    for what, cut in (("half", data[:len(data) // 2]), ("no end marker", data[:-2]))[:2 if kind == "JPEG" else 1]:
        found[kind, what] = outcome(lambda: decoded(cut)), outcome(lambda: decoded(cut, err_detect="explode"))
        print(kind, what, "- default:", found[kind, what][0], "- err_detect=explode:", found[kind, what][1])
sys.exit(found != {("JPEG", "half"): ("whole", "InvalidDataError"), ("JPEG", "no end marker"): ("whole", "whole"),
                   ("PNG", "half"): ("InvalidDataError",) * 2, ("WEBP", "half"): ("InvalidDataError",) * 2})
PYTHON
