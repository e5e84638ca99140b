#!/usr/bin/env bash
# Of a packet that is cut in half several of FFmpeg's decoders make a whole picture: no exception, and the frame does not call itself
# corrupt. Strict error detection (err_detect=explode) mends that for some, such as JPEG. A second decoder, which gets the same packet with
# other bytes behind its end, makes another picture of it, and of a whole packet the same. Exits non-zero if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet av==18.1.0 numpy==2.2.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
from fractions import Fraction

import av
import numpy as np

print("PyAV", av.__version__, "FFmpeg", av.ffmpeg_version_info)
BEHIND = b"\x55" * 2048


def decode(name, extra, packets, options=None):
    """(frames, errors, frames that call themselves corrupt) and the first plane of each."""
    context, frames, errors = av.CodecContext.create(name, "r"), [], 0
    context.extradata, context.thread_type, context.options = extra or None, "SLICE", options or {}
    context.width, context.height, context.pix_fmt = 176, 144, "yuv420p"
    for number, data in enumerate([*packets, None]):
        packet = None if data is None else av.Packet(data)
        if packet:
            packet.pts = packet.dts = number
            packet.time_base = Fraction(1, 25)
        try:
            frames += context.decode(packet)
        except av.EOFError:
            pass
        except av.FFmpegError:
            errors += 1
    planes = [np.frombuffer(f.planes[0], np.uint8).reshape(-1, f.planes[0].line_size)[:144, :176] for f in frames]
    return (len(frames), errors, sum(f.is_corrupt for f in frames)), planes


wrong = []
for encoder, decoder, strict in (("mjpeg", "mjpeg", True), ("huffyuv", "huffyuv", False), ("libx265", "hevc", True), ("libvpx", "vp8", False),
                                 ("libvpx-vp9", "vp9", False), ("libx264", "h264", None)):
    context = av.CodecContext.create(encoder, "w")
    context.width, context.height, context.time_base, context.framerate = 176, 144, Fraction(1, 25), Fraction(25)
    context.pix_fmt = {"mjpeg": "yuvj420p", "huffyuv": "yuv422p"}.get(encoder, "yuv420p")
    context.options = {"libx265": {"x265-params": "log-level=none:bframes=0"}, "libvpx": {"lag-in-frames": "0"},
                       "libvpx-vp9": {"lag-in-frames": "0"}, "libx264": {"bf": "0"}}.get(encoder, {})
    packets = []
    for number in range(8):
        picture = np.random.default_rng(number).integers(60, 200, (18, 22, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
        frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=context.pix_fmt)
        frame.pts, frame.time_base = number, Fraction(1, 25)
        packets += [bytes(packet) for packet in context.encode(frame)]
    packets += [bytes(packet) for packet in context.encode(None)]
    cut = [data[:len(data) // 2] if number == 5 else data for number, data in enumerate(packets)]
    extra = context.extradata
    said, pictures = decode(decoder, extra, cut)
    strictly = decode(decoder, extra, cut, {"err_detect": "explode"})[0]
    behind, others = decode(decoder, extra, [data + BEHIND for data in cut])
    whole = all(map(np.array_equal, decode(decoder, extra, packets)[1], decode(decoder, extra, [data + BEHIND for data in packets])[1]))
    other = len(pictures) != len(others) or not all(map(np.array_equal, pictures, others))
    print(f"{decoder:8} one of 8 packets cut: (frames, errors, corrupt) {said}, strict {strictly}; "
          f"other bytes behind it: {'another' if other else 'the same'} picture; behind whole ones: {'the same' if whole else 'another'}")
    silent = said == (8, 0, 0)
    expected = strict is None and not silent or strict is not None and silent and (strictly != said) == strict and whole and (other or strict)
    if not expected:
        wrong.append(decoder)
if wrong:
    sys.exit(f"not as it was: {wrong}")
print("as it was")
PYTHON
