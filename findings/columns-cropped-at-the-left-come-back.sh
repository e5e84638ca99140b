#!/usr/bin/env bash
# H.264 and HEVC of which columns at the left are cropped by the stream's own header (frame_crop_left_offset, conf_win_left_offset).
# Expected: frames of the size that stream and codec context say, the cropped columns gone, as the ffmpeg command shows them. Seen with PyAV:
# a crop at the left that is no multiple of 64 pixels (8-bit 4:2:0) is passed over, so that what was cut off is back and frames are wider than
# stream.width (256 for 240), without a word; at the top, right and bottom all is well. A frame of such a clip lies beside that of a
# sharp one by as many columns. codec_context.flags |= Flags.unaligned gives them as they are meant. Exits with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check av==18.1.0 imageio-ffmpeg==0.8.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import re, subprocess, sys
import av
import imageio_ffmpeg
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.codec.context import Flags

ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
print("PyAV", av.__version__, "FFmpeg", av.ffmpeg_version_info, "- and",
      " ".join(subprocess.run([ffmpeg, "-version"], capture_output=True, text=True).stdout.split()[:3]))
WIDTH, HEIGHT = 256, 192
CROPS = (16, 0, 0, 0), (40, 8, 0, 0), (64, 0, 0, 0), (0, 8, 16, 8)          # left, top, right, bottom
luma = np.tile(np.arange(WIDTH, dtype=np.uint8), (HEIGHT, 1))
luma[:, ::2] ^= np.arange(HEIGHT, dtype=np.uint8)[:, None]
picture = np.concatenate([luma, np.full((HEIGHT // 2, WIDTH), 128, np.uint8)])


def write(codec, crop):
    sides = ":".join(f"crop_{side}={size}" for side, size in zip(("left", "top", "right", "bottom"), crop))
    with av.open("clip.mkv", "w") as out:
        stream = out.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {"qp": "0"} if codec == "libx264" else {"x265-params": "lossless=1:log-level=none"}
        for packet in [*stream.encode(av.VideoFrame.from_ndarray(picture, format="yuv420p")), *stream.encode(None)]:
            out.mux(packet)
    with av.open("clip.mkv") as file, av.open("cropped.mkv", "w") as out:
        stream = out.add_stream_from_template(file.streams.video[0])
        name = {"libx264": "h264", "libx265": "hevc"}[codec]
        change = BitStreamFilterContext(f"{name}_metadata={sides}", file.streams.video[0], stream)
        for packet in file.demux(video=0):
            for cropped in change.filter(packet if packet.size else None):
                cropped.stream = stream
                out.mux(cropped)


def read(*flags):
    with av.open("cropped.mkv") as file:
        stream = file.streams.video[0]
        for flag in flags:
            stream.codec_context.flags |= flag
        frame = next(file.decode(video=0))
        plane = np.frombuffer(bytes(frame.planes[0]), np.uint8).reshape(-1, frame.planes[0].line_size)[:frame.height, :frame.width]
        return (stream.width, stream.height), plane


found = []
for codec in ("libx264", "libx265"):
    for crop in CROPS:
        left, top, right, bottom = crop
        write(codec, crop)
        meant, over = luma[top:HEIGHT - bottom, left:WIDTH - right], luma[top:HEIGHT - bottom, :WIDTH - right]
        size, plain = read()
        unaligned = read(Flags.unaligned)[1]
        text = subprocess.run([ffmpeg, "-hide_banner", "-i", "cropped.mkv", "-f", "null", "-"], capture_output=True, text=True).stderr
        command = re.search(r"wrapped_avframe.*?, (\d+)x(\d+)", text).groups()
        assert size == meant.shape[::-1] == tuple(map(int, command)) and np.array_equal(unaligned, meant)
        found.append((np.array_equal(plain, meant), np.array_equal(plain, over)))
        print(f"{codec}, cropped by {left} at the left, {top} at the top, {right} at the right: the stream says {size[0]} x {size[1]}, so does ffmpeg;",
              f"PyAV's frame is {plain.shape[1]} x {plain.shape[0]}" + ("" if found[-1][0] else ", the cropped columns are back"))
sys.exit(found != [(False, True), (False, True), (True, False), (True, True)] * 2)
PYTHON
