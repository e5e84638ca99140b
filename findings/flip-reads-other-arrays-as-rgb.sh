#!/usr/bin/env bash
# FLIP (flip-evaluator, NVIDIA's measure of what people see) of arrays that are not (height, width, 3) in 0..1: channels first, as PyTorch
# has them, with a fourth channel, or of 0..255.
# Expected: an error, as for (height, width), or the right number. Seen: a number, without a word. (3, H, W) is taken for a picture of
# 3 rows, the first values in memory: two pictures of which 95 % of the values differ have FLIP 0. Of RGBA the four values are read as if
# there were three, so that pictures of the same colors and another alpha differ by 0.59. Bytes are not scaled: 0.04 in the place of 0.45.
# Exits with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check flip-evaluator==1.7 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import importlib.metadata, sys
import flip_evaluator as flip
import numpy as np
print("flip-evaluator", importlib.metadata.version("flip-evaluator"))
rng = np.random.default_rng(0)
a, b = (rng.random((40, 56, 3)).astype(np.float32) for _ in range(2))


def of(one, other):
    """(mean error, shape of the map)"""
    error_map, mean, _ = flip.evaluate(one, other, "LDR")
    return round(float(mean), 4), error_map.shape


right = of(a, b)
first, second = (np.ascontiguousarray(x.transpose(2, 0, 1)) for x in (a, b))
second.reshape(-1)[:3 * 40 * 3] = first.reshape(-1)[:3 * 40 * 3]
channels_first = of(first, second)
print("(40, 56, 3):", right, "- (3, 40, 56), of which", f"{(first != second).mean():.0%} of the values differ:", channels_first)
clear, opaque = (np.dstack([a, np.full((40, 56), alpha, np.float32)]) for alpha in (0, 1))
rgba = of(clear, opaque)
print("the same colors with alpha 0 and 1:", rgba)
bytes_of = [np.rint(x * 255).astype(np.uint8) for x in (a, b)]
scaled, plain = of(*(x / np.float32(255) for x in bytes_of)), of(*bytes_of)
print("bytes / 255:", scaled, "- bytes:", plain)
try:
    flip.evaluate(a[..., 0], b[..., 0], "LDR")
    refused = False
except TypeError:
    refused = True
print("(40, 56) is refused:", refused)
as_it_was = (channels_first == (0.0, (3, 40, 3)) and rgba[0] > 0.1 and rgba[1] == (40, 56, 3) and abs(plain[0] - scaled[0]) > 0.01
             and abs(right[0] - scaled[0]) < 0.01 and refused)
sys.exit(0 if as_it_was else "not as it was")
PYTHON
