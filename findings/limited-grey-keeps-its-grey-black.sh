#!/usr/bin/env bash
# A grey video of limited range, black at 16 and white at 235, as HEVC and FFV1 store it: frames come out as gray with color_range 1.
# Expected: reformat to RGB puts 16 to 0 and 235 to 255, as it does for yuv420p with the same tag. Seen: 16 stays 16 and 235 stays 235:
# libswscale takes every grey format for full range whatever the frame says, so the picture is flat and a blurred and a sharp clip of
# which one is grey do not match. Given as src_color_range it is passed over too. Exits with 1 when that changes.
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
LIMITED = 1
found = {}
for codec, pix_fmt in (("libx265", "gray"), ("libx265", "gray10le"), ("ffv1", "gray"), ("ffv1", "gray16le"), ("libx265", "yuv420p"), ("ffv1", "yuv420p")):
    bits = int("".join(filter(str.isdigit, pix_fmt.removeprefix("yuv420p")))[:2] or 8)
    for luma in (16, 235):
        with av.open("a.mkv", "w") as out:
            stream = out.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
            stream.options = {"x265-params": "log-level=none:lossless=1"} if codec == "libx265" else {}
            stream.codec_context.color_range = LIMITED
            frame = av.VideoFrame(64, 48, pix_fmt)
            for index, plane in enumerate(frame.planes):
                value, size = (128 if index else luma) << bits - 8, 1 if bits == 8 else 2
                plane.update(np.full(plane.buffer_size // size, value, f"<u{size}").tobytes())
            frame.color_range = LIMITED
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                out.mux(packet)
        with av.open("a.mkv") as file:
            frame = next(file.decode(video=0))
        assert frame.format.name == pix_fmt and int(frame.color_range) == LIMITED
        asked = frame.reformat(format="rgb24", src_color_range=LIMITED, dst_color_range=2)
        found[codec, pix_fmt, luma] = int(frame.to_ndarray(format="rgb24")[24, 32, 0]), int(asked.to_ndarray()[24, 32, 0])
    black, white = found[codec, pix_fmt, 16], found[codec, pix_fmt, 235]
    print(f"{codec:8} {pix_fmt:9} color_range {LIMITED}: black and white come out as {black[0]} and {white[0]}, asked in full {black[1]} and {white[1]}")
sys.exit(any(value != (luma if "gray" in pix_fmt else {16: 0, 235: 255}[luma],) * 2 for (_, pix_fmt, luma), value in found.items()))
PYTHON
