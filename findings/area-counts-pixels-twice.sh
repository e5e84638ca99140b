#!/usr/bin/env bash
# torch.nn.functional.interpolate with mode="area" where the sizes do not divide, as from 1080p to 720p.
# Expected: each new pixel is the mean of the area that it covers, a pixel that lies in two of them shared out, as OpenCV's INTER_AREA has it; so
# every pixel counts alike and the mean stays. Seen: a pixel that is shared counts whole in both. A third of all columns white, mean 0.33, becomes
# 0.25 or 0.5 from 1920 to 1280 columns, as the white ones lie; so fine texture gets brighter or darker. Where the sizes divide all is well.
# Exits with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6 opencv-python-headless==5.0.0.93
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import cv2
import numpy as np
import torch
print("PyTorch", torch.__version__, "- OpenCV", cv2.__version__)


def covered(row, size):
    """The mean over what each of `size` pixels covers, of the running sum."""
    summed = np.concatenate([[0.0], np.cumsum(row, dtype=np.float64)])
    return np.diff(np.interp(np.linspace(0, len(row), size + 1), np.arange(len(row) + 1), summed)) * size / len(row)


found = {}
for size in (1280, 960):
    for white in range(3):
        row = (np.arange(1920) % 3 == white).astype(np.float32)
        area = torch.nn.functional.interpolate(torch.tensor(row)[None, None, None].expand(1, 1, 2, -1), size=(2, size), mode="area")[0, 0, 0].numpy()
        other = cv2.resize(np.tile(row, (4, 1)), (size, 4), interpolation=cv2.INTER_AREA)[0]
        right = covered(row, size)
        assert abs(other - right).max() < 1e-5 and abs(right.mean() - 1 / 3) < 1e-6
        found[size, white] = float(area.mean()), float(abs(area - right).max())
        print(f"1920 to {size} columns, white the columns 3 n + {white}, mean {row.mean():.3f}: area {found[size, white][0]:.3f},",
              f"OpenCV's INTER_AREA {other.mean():.3f}; a pixel off by up to {found[size, white][1]:.2f}")
sys.exit(not (all(abs(found[1280, white][0] - mean) < 1e-3 for white, mean in enumerate((0.25, 0.5, 0.25)))
              and all(found[960, white][1] < 1e-5 for white in range(3))))
PYTHON
