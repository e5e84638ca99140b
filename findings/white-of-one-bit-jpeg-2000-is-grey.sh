#!/usr/bin/env bash
# JPEG 2000 of fewer bits than a byte has, as masks and scans of text are kept: white is the highest number that they can write.
# Expected: white is 255 in what FFmpeg and Pillow decode, as both have it for a PNG of 1, 2 and 4 bits. Seen: both only shift the bits upwards, so
# that white of 1 bit is 128, mid grey, of 2 bits 192, of 4 bits 240; of 10 and 12 bits it is 65472 and 65520 of 65535. Nothing tells: the format
# is gray or L, as of 8 bits. A mask that is multiplied by lets half of everything through. Exits with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check Pillow==13.0.0 imagecodecs==2026.3.6 av==18.1.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import io, struct, sys, zlib
import av
import imagecodecs
import numpy as np
import PIL
from PIL import Image
print("FFmpeg", av.ffmpeg_version_info, "- Pillow", PIL.__version__, "- imagecodecs", imagecodecs.__version__)
SIZE = 64


def png(bits):
    """A white PNG of grey, of this many bits a pixel."""
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    rows = (b"\0" + b"\xff" * (SIZE * bits // 8)) * SIZE
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", SIZE, SIZE, bits, 0, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def white(data, codec):
    decoder = av.CodecContext.create(codec, "r")
    frame = (decoder.decode(av.Packet(data)) + decoder.decode(None))[0]
    if frame.format.name == "monob":
        frame = frame.reformat(format="gray")
    with Image.open(io.BytesIO(data)) as picture:
        kind, pixels = picture.mode, np.asarray(picture.convert("L") if picture.mode == "1" else picture)
    return (frame.format.name, int(frame.to_ndarray()[9, 9])), (kind, int(pixels[9, 9]))


found = {}
for bits in (1, 2, 4, 6, 8, 10, 12, 16):
    picture = np.full((SIZE, SIZE), 2 ** bits - 1, np.uint8 if bits <= 8 else np.uint16)
    data = imagecodecs.jpeg2k_encode(picture, level=0, reversible=True, bitspersample=bits, codecformat="jp2")
    assert (imagecodecs.jpeg2k_decode(data) == picture).all()
    seen, other = white(data, "jpeg2000")
    found[bits] = seen[1], other[1]
    print(f"JPEG 2000, {bits} bits, white is {2 ** bits - 1}: FFmpeg has", *seen, "- Pillow has", *other)
for bits in (1, 2, 4):
    seen, other = white(png(bits), "png")
    print(f"PNG, {bits} bits: FFmpeg has", *seen, "- Pillow has", *other)
    assert seen[1] == other[1] == 255
expected = {1: 128, 2: 192, 4: 240, 6: 252, 8: 255, 10: 65472, 12: 65520, 16: 65535}
sys.exit(found != {bits: (value, value) for bits, value in expected.items()})
PYTHON
