#!/usr/bin/env bash
# libx265's alpha layer (FFmpeg's yuva420p, Apple's "HEVC with alpha"): FFmpeg 9.0 decodes it to yuva420p; FFmpeg 8.1, as in PyAV 18.1,
# gives yuv420p, opaque, with no error. It says "Multiple scalability types presented", and only in its log. The container says yuv420p
# in both. Exits with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check av==18.1.0 imageio-ffmpeg==0.8.1
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import re, subprocess, sys
import av
import imageio_ffmpeg
ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
print(subprocess.run([ffmpeg, "-version"], capture_output=True, text=True).stdout.splitlines()[0], "- PyAV", av.__version__, "FFmpeg",
      av.ffmpeg_version_info)
subprocess.run([ffmpeg, "-v", "error", "-f", "lavfi", "-i", "testsrc2=s=128x96:r=25:d=0.2,format=yuva420p,geq=lum='lum(X,Y)':"
                "cb='cb(X,Y)':cr='cr(X,Y)':a='X*255/W'", "-c:v", "libx265", "-x265-params", "log-level=error", "-tag:v", "hvc1", "in.mov"],
               check=True)
text = subprocess.run([ffmpeg, "-hide_banner", "-i", "in.mov", "-f", "null", "-"], capture_output=True, text=True).stderr
decoded = re.search(r"wrapped_avframe, (\w+)", text)[1]
held = re.search(r"Video: hevc.*?, (\w+)\(", text)[1]
with av.open("in.mov") as file:
    here = {frame.format.name for frame in file.decode(video=0)}
print("the container says", held, "- FFmpeg 9 decodes", decoded, "- PyAV decodes", *here)
sys.exit((held, decoded, here) != ("yuv420p", "yuva420p", {"yuv420p"}))
PYTHON
