#!/usr/bin/env bash
# libx265 gives one frame, or two, decoding times that mean nothing: it takes them from the frame as far behind as its reordering is deep
# (2 by default), and where there is none, from memory that nothing was written to. Often that holds 0, and all is well; now and then it does
# not, and the .mp4 writer refuses the packet ("pts/dts pair unsupported", AVERROR_PATCHWELCOME: "Not yet implemented in FFmpeg"). From
# three frames on, without B-frames, and with libx264 all times are right. So time such packets yourself, or write short clips with bframes=0.
# To see it each time, glibc is asked to fill the memory that it hands out. Exits non-zero if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet av==18.1.0 numpy==2.2.6
cd "$folder"
MALLOC_PERTURB_=165 "$folder/venv/bin/python" - <<'PYTHON'
import sys
from fractions import Fraction

import av
import numpy as np

print("PyAV", av.__version__, "FFmpeg", av.ffmpeg_version_info)
wrong = []
for codec, options, senseless in (("libx265", {"x265-params": "log-level=none"}, {1, 2}),
                                  ("libx265", {"x265-params": "log-level=none:bframes=0"}, set()), ("libx264", {}, set())):
    for frames in (1, 2, 3, 4):
        refusal, times = "", []
        try:
            with av.open("a.mp4", "w") as out:
                stream = out.add_stream(codec, rate=25, options=options)
                stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
                stream.codec_context.time_base = Fraction(1, 12800)      # the .mp4 writer's own, so that nothing is converted
                packets = []
                for index in range(frames):
                    frame = av.VideoFrame.from_ndarray(np.full((144, 128), 100 + 20 * index, np.uint8), "yuv420p")
                    frame.pts = 512 * index
                    packets += stream.encode(frame)
                for packet in [*packets, *stream.encode(None)]:
                    times.append((packet.pts, packet.dts))
                    out.mux(packet)
        except av.FFmpegError as error:
            refusal = f", .mp4: {error.strerror}"
        print(f"{codec} {options} {frames} frame(s): (pts, dts) {times}{refusal}")
        if any(abs(dts) > 8 * 512 for _, dts in times) != (frames in senseless) or bool(refusal) != (frames in senseless):
            wrong.append((codec, frames))
if wrong:
    sys.exit(f"not as it was: {wrong}")
print("as it was")
PYTHON
