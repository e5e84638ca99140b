#!/usr/bin/env bash
# FFmpeg 9.0.2 (of imageio-ffmpeg 0.8.1): yellow of 8-bit 4:2:0 to RGB with the two flags that are advised for exact colors,
# accurate_rnd and full_chroma_int, scaler bilinear. Expected: the same yellow in 8 and in 16 bits. Seen: 8 bits (rgb24) are yellow, 16 bits
# (rgb48le) lose most of their green, without a word; with either flag alone, or to planes (gbrp16le), they are right.
# Exits with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check imageio-ffmpeg==0.8.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import subprocess
import sys
import imageio_ffmpeg
import numpy as np
program = imageio_ffmpeg.get_ffmpeg_exe()
print("FFmpeg", imageio_ffmpeg.get_ffmpeg_version())
yellow = np.concatenate([np.full(64 * 64, 210, np.uint8), np.full(32 * 32, 16, np.uint8), np.full(32 * 32, 146, np.uint8)]).tobytes()
wrong = []
for flags, to, expected in (("accurate_rnd+full_chroma_int+bilinear", "rgb48le", False), ("accurate_rnd+full_chroma_int+bilinear", "rgb24", True),
                            ("accurate_rnd+full_chroma_int+bilinear", "gbrp16le", True), ("accurate_rnd+bilinear", "rgb48le", True),
                            ("full_chroma_int+bilinear", "rgb48le", True), ("bilinear", "rgb48le", True)):
    done = subprocess.run([program, "-v", "error", "-f", "rawvideo", "-pix_fmt", "yuv420p", "-video_size", "64x64", "-i", "-", "-sws_flags", flags,
                           "-pix_fmt", to, "-f", "rawvideo", "-"], input=yellow, capture_output=True, check=True)
    values = np.frombuffer(done.stdout, np.uint8 if to == "rgb24" else "<u2").astype(float) / (1 if to == "rgb24" else 257)
    picture = values.reshape(3, 64, 64)[[2, 0, 1]].transpose(1, 2, 0) if to == "gbrp16le" else values.reshape(64, 64, 3)
    red, green, blue = picture[32, 32].round().astype(int)
    is_yellow = red > 240 and green > 240 and blue < 20
    print(f"{flags:38s} {to:9s} {red} {green} {blue}", done.stderr.decode())
    wrong += [to] if is_yellow != expected else []
sys.exit(bool(wrong))
PYTHON
