#!/usr/bin/env bash
# A single picture made of rows (H, W, C), `x.permute(2, 0, 1)[None]`, is channels-last to PyTorch's own
# question and not to its convolution.
# Expected: a convolution of what is_contiguous(memory_format=channels_last) says yes to is channels-last
# too, as it is for two pictures. Seen: it is plain NCHW, so every layer turns it there and back (a depthwise
# one takes 5 x as long), because the stride of an axis of one element counts for the one and not for the
# other; .contiguous(memory_format=channels_last) changes nothing. x[None].permute(0, 3, 1, 2) is taken for
# what it is. Exits with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import torch
from torch import nn
print("PyTorch", torch.__version__)
last = torch.channels_last
torch.set_grad_enabled(False)
rows, conv = torch.randn(24, 32, 64), nn.Conv2d(64, 64, 3, padding=1, groups=64)
pictures = {"permuted, then [None]": rows.permute(2, 0, 1)[None],
            "the same, .contiguous(channels_last)": rows.permute(2, 0, 1)[None].contiguous(memory_format=last),
            "[None], then permuted": rows[None].permute(0, 3, 1, 2),
            "two pictures": torch.stack([rows, rows]).permute(0, 3, 1, 2)}
seen = []
for name, picture in pictures.items():
    seen.append((picture.is_contiguous(memory_format=last), conv(picture).is_contiguous(memory_format=last)))
    print(f"{name}: strides {picture.stride()}, channels-last: {seen[-1][0]}, its convolution: {seen[-1][1]}")
sys.exit(seen != [(True, False), (True, False), (True, True), (True, True)])
PYTHON
