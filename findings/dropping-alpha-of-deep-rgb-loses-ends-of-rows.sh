#!/usr/bin/env bash
# FFmpeg takes the alpha plane away from planar RGB of more than 8 bits (gbrap16le, gbrap12le, gbrap10le to gbrp*), or adds one.
# Expected: the three color planes stay as they are, as they do for YUV and for 8 bits. Seen: the right half of rows is not copied, as if a
# row's length were counted in values and not in bytes: by the program ffmpeg (9.0) of every row of a picture 360 wide, else, and by
# PyAV, of the last row of each thread's slice. No error. 16-bit RGBA in FFV1 is gbrap16le, CineForm with alpha gbrap12le.
# Exits with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check av==18.1.0 imageio-ffmpeg==0.8.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import subprocess
import sys
import av
import imageio_ffmpeg
import numpy as np
program = imageio_ffmpeg.get_ffmpeg_exe()
print("PyAV", av.__version__, "FFmpeg", av.ffmpeg_version_info, "and the program", imageio_ffmpeg.get_ffmpeg_version())
HEIGHT, wrong = 48, []


def by_program(planes, source, wanted):
    """The first three planes that `ffmpeg -pix_fmt` makes of raw video."""
    command = [program, "-v", "error", "-f", "rawvideo", "-pix_fmt", source, "-s", f"{planes.shape[2]}x{HEIGHT}", "-i", "-",
               "-f", "rawvideo", "-pix_fmt", wanted, "-"]
    data = np.frombuffer(subprocess.run(command, input=planes.tobytes(), stdout=subprocess.PIPE, check=True).stdout, planes.dtype)
    return data.reshape(-1, *planes.shape[1:])[:3]


def by_pyav(planes, source, wanted):
    """The first three planes that VideoFrame.reformat makes of a frame."""
    frame = av.VideoFrame(planes.shape[2], HEIGHT, source)
    for plane, values in zip(frame.planes, planes):
        rows = np.zeros((HEIGHT, plane.line_size // planes.itemsize), planes.dtype)
        rows[:, :planes.shape[2]] = values
        plane.update(rows.tobytes())
    made = frame.reformat(format=wanted)
    return np.stack([np.frombuffer(plane, planes.dtype)[:HEIGHT * plane.line_size // planes.itemsize].reshape(HEIGHT, -1)[:, :planes.shape[2]]
                     for plane in made.planes[:3]])


for source, wanted, bits in (("gbrap16le", "gbrp16le", 16), ("gbrp16le", "gbrap16le", 16), ("gbrap12le", "gbrp12le", 12),
                             ("yuva444p16le", "yuv444p16le", 16), ("gbrap", "gbrp", 8)):
    for width in (128, 360):
        kind = "u1" if bits == 8 else "<u2"
        planes = np.random.default_rng(0).integers(1, 2 ** bits, (4 if "a" in source else 3, HEIGHT, width)).astype(kind)
        lost = {}
        for name, convert in (("FFmpeg", by_program), ("PyAV", by_pyav)):
            different = convert(planes, source, wanted) != planes[:3]
            lost[name] = different.any((0, 2)).sum(), np.flatnonzero(different.any((0, 1))).min(initial=width)
        print(f"{source} -> {wanted}, {width} wide:", ", ".join(f"{n}: {rows} of {HEIGHT} rows differ from column {at}" for n, (rows, at) in lost.items()))
        affected = source.startswith("gb") and bits > 8
        if any((at == width // 2) != affected for _, at in lost.values()) or affected and (lost["FFmpeg"][0] == HEIGHT) != (width == 360):
            wrong.append((source, width))
sys.exit(f"not as it was: {wrong}" if wrong else 0)
PYTHON
