#!/usr/bin/env bash
# torch.nn.functional.avg_pool2d on a CPU, a mean over 7 x 7 pixels around each one, as optical flow and local statistics need it.
# Expected: a mean over 7 rows and then one over 7 columns, 14 values instead of 49, takes a third of its time, as of a convolution. Seen: about as
# long as the square one; and 12 additions of the whole picture, shifted by a pixel each time, and a division take about a quarter of either or less,
# though they write 13 pictures to memory where the pooling writes one. The results agree to rounding.
# Exits with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import statistics
import sys
import time
import torch
import torch.nn.functional as F
print("PyTorch", torch.__version__)
SIDE = 7
torch.set_num_threads(1)


def square(x):
    return F.avg_pool2d(x, SIDE, stride=1)


def thin(x):
    return F.avg_pool2d(F.avg_pool2d(x, (SIDE, 1), stride=1), (1, SIDE), stride=1)


def shifted(x):
    for axis in (2, 3):
        parts = [x.narrow(axis, i, x.shape[axis] - SIDE + 1) for i in range(SIDE)]
        x = parts[0] + parts[1]
        for part in parts[2:]:
            x += part
    return x / SIDE**2


ratios = []
for channels, height, width in ((5, 262, 454), (3, 726, 1286)):
    x, times = torch.rand(1, channels, height, width), {}
    for _ in range(12):
        for way in (square, thin, shifted):
            start = time.perf_counter()
            way(x)
            times.setdefault(way.__name__, []).append(time.perf_counter() - start)
    ms = {name: 1000 * statistics.median(each[2:]) for name, each in times.items()}
    off = max(float((way(x) - square(x)).abs().max()) for way in (thin, shifted))
    ratios.append((ms["thin"] / ms["square"], ms["shifted"] / min(ms["square"], ms["thin"])))
    print(f"{channels} x {height} x {width}: {ms['square']:.1f} ms square, {ms['thin']:.1f} ms by rows and columns, {ms['shifted']:.1f} ms by",
          f"shifted additions; they differ by {off:.0e}")
sys.exit(not all(thin > 0.6 and added < 0.4 for thin, added in ratios))
PYTHON
