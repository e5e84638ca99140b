#!/usr/bin/env bash
# 8-bit pictures to 16 bits or to floats with PyAV, as a loader does that also takes 16-bit files: to_ndarray(format="rgb48le"), "gbrpf32le".
# Expected: white is white, 255 becomes 255 x 257 = 65535 or 1.0, as gray to gray16le has it. Seen: 65283 of rgb24 and of yuv444p's 235, 65280
# of gray in RGB, 65473 of gbrp10le in gbrp16le, and 0.996 in floats, without a word: libswscale multiplies by 256. A clip of 8 bits is 0.4 %
# darker than the same clip in 16, which alone holds PSNR below 50 dB on bright pictures. FFmpeg 9.0 does the same, no flag mends it, and
# going back to 8 bits gives 255, so that a test there and back passes. Exits with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check av==18.1.0 imageio-ffmpeg==0.8.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import subprocess, sys
import av
import imageio_ffmpeg
import numpy as np
from av.video.reformatter import Interpolation

ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
print("PyAV", av.__version__, "FFmpeg", av.ffmpeg_version_info, "- and",
      " ".join(subprocess.run([ffmpeg, "-version"], capture_output=True, text=True).stdout.split()[:3]))


def white(pix_fmt, *values):
    frame = av.VideoFrame(32, 32, pix_fmt)
    for plane, value in zip(frame.planes, values):
        plane.update(np.full(plane.buffer_size // (1 + (value > 255)), value, np.uint16 if value > 255 else np.uint8).tobytes())
    return frame


def brightest(frame, pix_fmt, **options):
    values = np.unique(frame.reformat(format=pix_fmt, **options).to_ndarray())
    assert values.size == 1, values
    return round(float(values[0]), 4)


frames = {"rgb24": white("rgb24", 255), "gray": white("gray", 255), "yuv444p": white("yuv444p", 235, 128, 128),
          "gbrp10le": white("gbrp10le", 1023, 1023, 1023)}
found = {(name, to): brightest(frame, to) for name, frame in frames.items() for to in ("gray16le", "rgb48le", "gbrp16le", "gbrpf32le")}
for name in frames:
    print(f"white of {name:8}:", ", ".join(f"{to} {found[name, to]:g}" for to in ("gray16le", "rgb48le", "gbrp16le", "gbrpf32le")))
flags = {brightest(frames["rgb24"], "rgb48le", interpolation=flag) for flag in Interpolation}
back = brightest(frames["rgb24"].reformat(format="rgb48le"), "rgb24")
print("rgb24 to rgb48le with each of", len(Interpolation), "flags:", flags, "- and back to rgb24:", back)
raw = ["-f", "rawvideo", "-pix_fmt"]
cli = subprocess.run([ffmpeg, "-v", "error", *raw, "rgb24", "-s", "32x32", "-i", "-", "-vf", "format=rgb48le", *raw, "rgb48le", "-"],
                     input=b"\xff" * 32 * 32 * 3, stdout=subprocess.PIPE, check=True).stdout
cli = set(np.frombuffer(cli, np.uint16).tolist())
print("FFmpeg 9, rgb24 to rgb48le:", cli)
level = round(20 * float(np.log10(65535 / (65535 - 65283))), 1)
print("a white picture against 65535 in 16 bits:", level, "dB")
sys.exit(not (all(found[name, "gray16le"] == 65535 for name in frames) and flags == cli == {65283} and back == 255
              and found["gbrp10le", "gbrp16le"] == 65473 and found["gray", "rgb48le"] == 65280
              and all(found[name, "rgb48le"] == 65283 for name in ("rgb24", "yuv444p"))
              and all(found[name, "gbrpf32le"] < 0.9965 for name in ("rgb24", "gray", "yuv444p"))))
PYTHON
