#!/usr/bin/env bash
# Colour JPEG 2000 of more than 8 bits a channel (digital cinema has 12, scans 16), opened with Pillow, which has 8 bits for it: mode RGB or RGBA.
# Expected: 8 bits that are nearest to what is stored, white 255, as FFmpeg's and OpenJPEG's own decoding put it at the top. Seen: white is 0, 0, 0,
# without a word: half a step is added before the surplus bits are cut off and the sum is not held at 255, so that the uppermost values of each
# channel (from 1022 of 1023, 4088 of 4095, 65408 of 65535) turn to 0. In RGBA what is opaque is wholly transparent. A picture without clipped
# lights shows nothing of it; grey ones (I;16) are right. Exits with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check Pillow==13.0.0 imagecodecs==2026.3.6 av==18.1.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import io, sys
import av
import imagecodecs
import numpy as np
import PIL
from PIL import Image, features
print("Pillow", PIL.__version__, "OpenJPEG", features.version("jpg_2000"), "- imagecodecs", imagecodecs.__version__, "- FFmpeg", av.ffmpeg_version_info)


def pillow(array, bits):
    data = imagecodecs.jpeg2k_encode(array, level=0, reversible=True, bitspersample=bits, codecformat="jp2")
    assert (imagecodecs.jpeg2k_decode(data) == array).all()                  # what is in the file is what was meant
    with Image.open(io.BytesIO(data)) as picture:
        return data, picture.mode, np.asarray(picture)


found = {}
for bits in (8, 10, 12, 16):
    top = 2 ** bits - 1
    ramp = np.arange(top - 255, top + 1, dtype=np.uint8 if bits == 8 else np.uint16).reshape(16, 16).repeat(4, 0).repeat(4, 1)
    data, mode, seen = pillow(np.stack([ramp] * 3, -1), bits)
    decoder = av.CodecContext.create("jpeg2000", "r")
    other = (decoder.decode(av.Packet(data)) + decoder.decode(None))[0].to_ndarray()
    assert other[-1, -1, 0] >= 0.999 * np.iinfo(other.dtype).max
    wrong = np.abs(seen[..., 0] - ramp * (255 / top)) > 2
    opaque = np.stack([np.full_like(ramp, top // 2)] * 3 + [np.full_like(ramp, top)], -1)
    _, alpha_mode, alpha = pillow(opaque, bits)
    found[bits] = seen[-1, -1].tolist(), int(ramp[wrong].min()) if wrong.any() else None, alpha[0, 0].tolist()
    print(f"{bits} bits: {mode}, white is {found[bits][0]}, FFmpeg's {other[-1, -1].tolist()} ({other.dtype}); wrong from {found[bits][1]} of {top};",
          f"{alpha_mode}, opaque grey is {found[bits][2]}")
grey = pillow(np.full((64, 64), 65535, np.uint16), 16)
print("16 bits of grey:", grey[1], "white is", grey[2][0, 0])
sys.exit(not (found[8] == ([255, 255, 255], None, [127, 127, 127, 255]) and grey[2][0, 0] == 65535
              and all(found[bits][:2] == ([0, 0, 0], first) and found[bits][2][3] == 0 for bits, first in ((10, 1022), (12, 4088), (16, 65408)))))
PYTHON
