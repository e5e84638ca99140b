#!/usr/bin/env bash
# H.264 with B-frames in .mp4 whose frames do not come evenly, as of a screen recorder or a phone: nine at 25 per second, and a last one at 1.0 s.
# Expected: the file lasts 1.04 s, as FFmpeg has it of the same frames in Matroska, and without B-frames in .mp4. Seen: FFmpeg's
# muxer writes 1.04 s into the headers, but the frames' durations from one decoding time to the next, which with B-frames are those of earlier frames,
# and its demuxer believes their sum: 0.4 s and 25 frames per second, for stream and container, though the last frame begins at 1.0 s. A pause in
# the middle counts, but for another frame: that in front of it lasts 0.04 s and a later one 0.68 s. FFmpeg 9.0 reads the same lengths from
# these files. Who cuts or loops by the duration leaves the last frame out. Exits with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check av==18.1.0 imageio-ffmpeg==0.8.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import re, struct, subprocess, sys
from fractions import Fraction
import av
import imageio_ffmpeg
import numpy as np
print("PyAV", av.__version__, "FFmpeg", av.ffmpeg_version_info, "- and", imageio_ffmpeg.get_ffmpeg_version())
TICK = Fraction(1, 1000)


def write(name, times, **options):
    with av.open(name, "w") as container:
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.width = stream.height = 64
        stream.codec_context.time_base = TICK
        for number, (start, end) in enumerate(zip(times, [*times[1:], times[-1] + 40])):
            frame = av.VideoFrame.from_ndarray(np.full((96, 64), 16 + 10 * number, np.uint8), "yuv420p")
            frame.pts, frame.time_base, frame.duration = start, TICK, end - start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def read(name):
    with av.open(name) as container:
        stream = container.streams.video[0]
        frames = [(round(float(f.pts * f.time_base), 2), round(float(f.duration * f.time_base), 2)) for f in container.decode(stream)]
        whole = container.duration / av.time_base
        of_stream = float(stream.duration * stream.time_base) if stream.duration else whole
        rate = float(stream.average_rate)
    said = subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", name], capture_output=True, text=True).stderr
    minutes, seconds = re.search(r"Duration: 00:(\d+):([\d.]+)", said).groups()
    return frames, (round(whole, 2), round(of_stream, 2), 60 * int(minutes) + float(seconds)), rate


def header(name):
    """The length that the box mdhd tells, in seconds."""
    data = open(name, "rb").read()
    scale, length = struct.unpack(">II", data[(place := data.index(b"mdhd") + 16):place + 8])
    return length / scale


late = [*range(0, 360, 40), 1000]
found = {}
for name, options in (("b.mp4", {}), ("b.mkv", {}), ("plain.mp4", {"bf": "0"})):
    write(name, late, **options)
    frames, lengths, rate = found[name] = read(name)
    more = f", its header {header(name):.2f} s" if name.endswith("mp4") else ""
    print(f"{name}: the last frame begins at {frames[-1][0]} s; container, stream and FFmpeg 9 say {lengths} s{more}; {rate:.2f} a second")
    assert len(frames) == 10 and frames[-1][0] == 1.0
pause = [*range(0, 360, 40), *range(1000, 1400, 40)]
for name, options in (("pause-b.mp4", {}), ("pause-plain.mp4", {"bf": "0"})):
    write(name, pause, **options)
    frames, lengths, _ = found[name] = read(name)
    long = [start for start, lasts in frames if lasts > 0.5]
    print(f"{name}: a pause behind the frame of 0.32 s; the one of {long} s is said to last so long; {lengths} s")
    found[name] = long, lengths
wrong = [name for name, length in (("b.mp4", 0.4), ("b.mkv", 1.04), ("plain.mp4", 1.04)) if found[name][1] != (length,) * 3]
wrong += [] if header("b.mp4") == 1.04 else ["header"]
wrong += [name for name, right in (("pause-b.mp4", False), ("pause-plain.mp4", True))
          if (found[name][0] == [0.32]) != right or found[name][1][0] != 1.4]
sys.exit(f"not as it was: {wrong}" if wrong else 0)
PYTHON
