#!/usr/bin/env bash
# An OpenEXR file that is cut off at half decodes with FFmpeg, the lower half black, without an error.
# Expected: an exception, or a frame that says it is corrupt; with err_detect=explode at least. Seen: a whole frame whose missing
# lines are 0, with and without the option. DPX and PNG cut in the same way raise.
# Exits with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check av==18.1.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import io, sys
import av
import numpy as np
print("PyAV", av.__version__, "FFmpeg", av.ffmpeg_version_info)
from fractions import Fraction


def decoded(data, **options):
    with av.open(io.BytesIO(data)) as file:
        stream = file.streams.video[0]
        stream.codec_context.options = options
        return next(file.decode(stream))


def encoded(codec, pix_fmt):
    context = av.CodecContext.create(codec, "w")
    context.width, context.height, context.pix_fmt, context.time_base = 64, 48, pix_fmt, Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 200, np.uint8), "rgb24").reformat(format=pix_fmt)
    return b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])


data = encoded("exr", "gbrpf32le")
data = data[:len(data) // 2]
seen = []
for options in ({}, {"err_detect": "explode"}):
    frame = decoded(data, **options)
    rows = frame.to_ndarray()[..., 0].max(axis=1)
    seen.append((rows[0] > 0.5, rows[-1] == 0, frame.is_corrupt))
    print("exr", options, "- first row", rows[0], "last row", rows[-1], "corrupt:", frame.is_corrupt)
data = encoded("dpx", "gbrp10le")
try:
    decoded(data[:len(data) // 2])
    raised = False
except av.FFmpegError as error:
    raised = True
    print("dpx:", type(error).__name__)
sys.exit(seen != [(True, True, False)] * 2 or not raised)
PYTHON
