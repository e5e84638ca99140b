#!/usr/bin/env bash
# A file that ends in the middle of its last frame, as after a full disk. Expected: an error, or a packet that calls itself corrupt. Seen:
# FFmpeg's demuxers of Matroska, WebM and YUV4MPEG give one frame less, that of raw DV fills the frame up, all without a word: no
# exception, no corrupt packet, no corrupt frame. AVI and NUT give the half packet. Exits with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check av==18.1.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import av
import numpy as np
print("PyAV", av.__version__, "FFmpeg", av.ffmpeg_version_info)


def look(name):
    """(packets, corrupt ones, frames, corrupt ones, errors), and where the last packet begins and its size."""
    packets = frames = bad = corrupt = errors = 0
    last = (0, 0)
    with av.open(name) as file:
        try:
            for packet in file.demux(video=0):
                if packet.size:
                    packets, corrupt, last = packets + 1, corrupt + packet.is_corrupt, max(last, (packet.pos or 0, packet.size))
                for frame in packet.decode():
                    frames, bad = frames + 1, bad + frame.is_corrupt
        except av.FFmpegError:
            errors += 1
    return (packets, corrupt, frames, bad, errors), last


expected = {"mkv": (5, 0, 5, 0, 0), "webm": (5, 0, 5, 0, 0), "y4m": (5, 0, 5, 0, 0), "dv": (6, 0, 6, 0, 0)}
found = {}
for suffix, codec, size in (("mkv", "ffv1", (144, 176)), ("webm", "libvpx", (144, 176)), ("y4m", "wrapped_avframe", (144, 176)),
                            ("dv", "dvvideo", (576, 720)), ("avi", "ffv1", (144, 176)), ("nut", "ffv1", (144, 176))):
    name = f"in.{suffix}"
    with av.open(name, "w") as out:
        stream = out.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for i in range(6):
            frame = av.VideoFrame.from_ndarray(np.random.default_rng(i).integers(0, 255, (*size, 3), np.uint8), "rgb24")
            frame.pts = i
            out.mux(stream.encode(frame.reformat(format="yuv420p")))
        out.mux(stream.encode(None))
    whole, (place, length) = look(name)
    data = open(name, "rb").read()
    open(name, "wb").write(data[:place + length // 2])
    found[suffix] = look(name)[0]
    print(f"{suffix:5} whole: {whole}, its last frame cut: {found[suffix]} (packets, corrupt, frames, corrupt, errors)")
sys.exit(any(found[suffix] != value for suffix, value in expected.items()) or found["avi"][0] != 6 or found["nut"][0] != 6)
PYTHON
