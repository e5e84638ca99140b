#!/usr/bin/env bash
# -color_primaries, -color_trc, -colorspace and -color_range behind the input of an ffmpeg command, for frames that say nothing of their
# colors, as rgb24 from a pipe: full green as BT.709, and as BT.2020 with PQ (HDR).
# Expected: all four are written, and the pixels are what they say. Seen: FFmpeg 7.0 (imageio-ffmpeg 0.6.0) writes all four and converts
# with BT.601 all the same: both files hold luma 145 for green, where BT.709 has 173 and BT.2020 164. FFmpeg 9.0 (imageio-ffmpeg 0.8.1)
# converts, and writes matrix and range, but passes over primaries and transfer without a word: the HDR file does not say that it is one.
# With -vf setparams=color_primaries=...:color_trc=... it writes them. Exits with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for version in 0.6.0 0.8.1; do
    python3 -m venv "$folder/venv-$version"
    "$folder/venv-$version/bin/pip" install --quiet --disable-pip-version-check "imageio-ffmpeg==$version"
done
cd "$folder"
cat > run.py <<'PYTHON'
import re, subprocess, sys
import imageio_ffmpeg
ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
print(subprocess.run([ffmpeg, "-version"], capture_output=True, text=True).stdout.splitlines()[0].partition(" Copyright")[0])
SAME = "BT.709 bt709 bt709 bt709", "HDR bt2020 smpte2084 bt2020nc"


def written(kind, primaries, transfer, matrix, *filters):
    """(what the file says, its first luma) of a lossless clip of green."""
    command = [ffmpeg, "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "64x48", "-r", "25", "-i", "-", *filters, "-c:v",
               "libx264", "-qp", "0", "-pix_fmt", "yuv444p", "-color_primaries", primaries, "-color_trc", transfer, "-colorspace", matrix,
               "-color_range", "tv", "out.mp4"]
    subprocess.run(command, input=bytes([0, 255, 0]) * 64 * 48 * 2, check=True)
    text = subprocess.run([ffmpeg, "-hide_banner", "-i", "out.mp4"], capture_output=True, text=True).stderr
    said = re.search(r"yuv444p\((.*?), progressive\)", text)[1]
    luma = subprocess.run([ffmpeg, "-v", "error", "-i", "out.mp4", "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "yuv444p", "-"],
                          capture_output=True, check=True).stdout[0]
    print(f"{kind}: the file says {said}, luma {luma}")
    return said, luma


found = [written(*each.split()) for each in SAME]
found.append(written("HDR and setparams", *SAME[1].split()[1:], "-vf", "setparams=color_primaries=bt2020:color_trc=smpte2084"))
expected = {"old": [("tv, bt709", 145), ("tv, bt2020nc/bt2020/smpte2084", 145), ("tv, bt2020nc/bt2020/smpte2084", 145)],
            "new": [("tv, bt709/unknown/unknown", 173), ("tv, bt2020nc/unknown/unknown", 164), ("tv, bt2020nc/bt2020/smpte2084", 164)]}
sys.exit(found != expected[sys.argv[1]])
PYTHON
venv-0.6.0/bin/python run.py old
venv-0.8.1/bin/python run.py new
