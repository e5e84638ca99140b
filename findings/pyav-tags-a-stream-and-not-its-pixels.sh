#!/usr/bin/env bash
# RGB frames given to a PyAV encoder whose context says BT.709 (colorspace = 1), or full range (color_range = 2), as writers of clips do.
# Expected: pixels and tag agree: of full green BT.709 has luma 173, and 182 in full range; so does `ffmpeg -colorspace bt709` of FFmpeg 9.
# Seen: the tag is written, the pixels are BT.601's in limited range whatever it says (145), without a word, so that green comes back as
# 216 by the file's own tags, 203 in full range. What the frame says counts: frame.colorspace = 1 before encode(), or
# reformat(dst_colorspace=...), gives 173. Exits with 1 when that changes.
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
GREEN = np.zeros((96, 128, 3), np.uint8)
GREEN[..., 1] = 255


def through_a_file(matrix, value_range, on_frame):
    """(matrix and range that the file says, its luma, the green that comes back) of a lossless clip of green."""
    with av.open("out.mp4", "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv444p"
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, value_range
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(GREEN, "rgb24")
            if on_frame:
                frame.colorspace = matrix
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with av.open("out.mp4") as file:
        frame = next(file.decode(video=0))
        return (int(frame.colorspace), int(frame.color_range), bytes(frame.planes[0])[0],
                int(frame.to_ndarray(format="rgb24")[40, 40, 1]))


wrong = []
for said, expected in (((5, 1, False), (5, 1, 145, 255)), ((1, 1, False), (1, 1, 145, 216)), ((1, 2, False), (1, 2, 145, 203)),
                       ((9, 1, False), (9, 1, 145, 225)), ((1, 1, True), (1, 1, 173, 255))):
    found = through_a_file(*said)
    print("matrix {}, range {} on the {}:".format(*said[:2], "frames too" if said[2] else "encoder"), "file says {}, {}, luma {}, green {}".format(*found))
    wrong += [said] if found != expected else []
by_hand = av.VideoFrame.from_ndarray(GREEN, "rgb24").reformat(format="yuv444p", dst_colorspace="ITU709", dst_color_range="JPEG")
print("reformat to BT.709, full range: luma", bytes(by_hand.planes[0])[0])
sys.exit(f"not as it was: {wrong}" if wrong or bytes(by_hand.planes[0])[0] != 182 else 0)
PYTHON
