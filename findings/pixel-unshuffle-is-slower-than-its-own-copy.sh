#!/usr/bin/env bash
# torch.nn.functional.pixel_unshuffle and pixel_shuffle on a CPU: blocks of 2 x 2 pixels to channels and back, as networks for restoration begin
# and end.
# Expected: either is one copy in another order of axes, so view, permute and contiguous, which write the same tensor, take as long. Seen (x86, one
# thread): pixel_unshuffle takes 3 to 5 x as long as that copy, in float32 and in bfloat16, on a picture and on features, pixel_shuffle twice
# as long. The results are equal. Exits with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import time
import torch
import torch.nn.functional as F
print("PyTorch", torch.__version__)
torch.set_num_threads(1)


def unshuffle(x):
    n, c, h, w = x.shape
    return x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).contiguous().view(n, 4 * c, h // 2, w // 2)


def shuffle(x):
    n, c, h, w = x.shape
    return x.view(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).contiguous().view(n, c // 4, 2 * h, 2 * w)


def ratio(theirs, plain, x):
    times = {theirs: [], plain: []}
    for _ in range(30):
        for way, taken in times.items():
            start = time.perf_counter()
            way(x)
            taken.append(time.perf_counter() - start)
    assert torch.equal(theirs(x), plain(x))
    return min(times[theirs]) / min(times[plain])


found = []
for dtype in (torch.float32, torch.bfloat16):
    for channels, height, width in ((3, 720, 1280), (48, 128, 224)):
        x = torch.rand(1, channels, height, width).to(dtype)
        there, back = ratio(lambda y: F.pixel_unshuffle(y, 2), unshuffle, x), ratio(lambda y: F.pixel_shuffle(y, 2), shuffle, unshuffle(x))
        found.append((there, back))
        print(f"{dtype}, {channels} x {height} x {width}: pixel_unshuffle {there:.1f} x, pixel_shuffle {back:.1f} x as long as the copy")
sys.exit(not all(there > 2 for there, back in found))
PYTHON
