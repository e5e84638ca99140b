#!/usr/bin/env bash
# CRF 0 (the best there is) of FFmpeg's encoders, for pairs of blurred and sharp clips that are to be kept as they are.
# Expected: lossless, as with libx264 in 8 bits. Seen: with libx264 in 10 bits noise comes back off by several values (libx264's scale begins
# at -12 there: qp=0 means lossless, crf=0 does not), with libx265 and libsvtav1 in any depth; VP9 is lossless, x265 and SVT-AV1 want
# lossless=1. No encoder says so. Exits with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check av==18.1.0 numpy==2.4.6
cd "$folder"
SVT_LOG=0 "$folder/venv/bin/python" - <<'PYTHON'
import sys
import av
import numpy as np
print("PyAV", av.__version__, "FFmpeg", av.ffmpeg_version_info)


def error(codec, bits, options):
    """Greatest difference of the luma of three frames of noise, of full scale 2 ** bits - 1."""
    pix_fmt, kind = ("yuv420p", "u1") if bits == 8 else ("yuv420p10le", "<u2")
    noise, worst = np.random.default_rng(0).integers(16 << bits - 8, 235 << bits - 8, (3, 96, 128)).astype(kind), 0
    with av.open("a.mkv", "w") as out:
        stream = out.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.options = 128, 96, pix_fmt, options
        for number, luma in enumerate(noise):
            frame = av.VideoFrame(128, 96, pix_fmt)
            for index, plane in enumerate(frame.planes):
                rows = np.full((plane.height, plane.line_size // luma.itemsize), 128 << bits - 8, kind)
                if index == 0:
                    rows[:, :128] = luma
                plane.update(rows.tobytes())
            frame.pts = number
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with av.open("a.mkv") as file:
        for frame, luma in zip(file.decode(video=0), noise, strict=True):
            plane = frame.planes[0]
            rows = np.frombuffer(plane, kind)[:96 * plane.line_size // luma.itemsize].reshape(96, -1)[:, :128]
            worst = max(worst, int(np.abs(rows.astype(int) - luma).max()))
    return worst


QUIET = "log-level=none"
wrong = []
for codec, bits, options, lossless in (
        ("libx264", 8, {"crf": "0"}, True), ("libx264", 10, {"crf": "0"}, False), ("libx264", 10, {"qp": "0"}, True),
        ("libx265", 8, {"crf": "0", "x265-params": QUIET}, False), ("libx265", 10, {"crf": "0", "x265-params": QUIET}, False),
        ("libx265", 10, {"x265-params": f"{QUIET}:lossless=1"}, True), ("libsvtav1", 8, {"crf": "0"}, False), ("libsvtav1", 10, {"crf": "0"}, False),
        ("libsvtav1", 10, {"svtav1-params": "lossless=1"}, True), ("libvpx-vp9", 8, {"crf": "0", "b": "0"}, True)):
    found = error(codec, bits, options)
    print(f"{codec:10} {bits:2} bits {options}: greatest error {found}")
    wrong += [(codec, bits, options)] * ((found == 0) != lossless)
sys.exit(f"not as it was: {wrong}" if wrong else 0)
PYTHON
