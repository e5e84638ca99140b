#!/usr/bin/env bash
# PyTorch's group_norm on a CPU, of the same float32 picture in two layouts of memory.
# Expected: the same but for rounding (1e-5), as for layer_norm and instance_norm. Seen: channels-last is off by 0.02 where the mean is
# 100 standard deviations and by whole units where it is 1000, the plain layout by less than 1e-4: the one takes the variance as the mean
# of the squares less the square of the mean, the other one does not. Both layouts give the same type and pass allclose on noise around 0.
# Exits with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import torch
import torch.nn.functional as F
print("PyTorch", torch.__version__, torch.backends.cpu.get_cpu_capability())
errors = {}
for name, norm in (("group_norm", lambda x: F.group_norm(x, 8)), ("layer_norm", lambda x: F.layer_norm(x, x.shape[1:])),
                   ("instance_norm", F.instance_norm)):
    for mean in (0, 10, 100, 1000):
        x = mean + torch.randn(2, 32, 32, 32, generator=torch.Generator().manual_seed(0))
        right = norm(x.double())
        plain, last = ((norm(y) - right).abs().max().item() for y in (x, x.contiguous(memory_format=torch.channels_last)))
        errors[name, mean] = plain, last
        print(f"{name:13} mean {mean:4}, standard deviation 1: greatest error {plain:.1e} of (N, C, H, W), {last:.1e} of channels-last")
sys.exit(not (errors["group_norm", 100][1] > 5e-3 and errors["group_norm", 1000][1] > 0.5 and errors["group_norm", 0][1] < 1e-4
              and all(plain < 1e-3 for plain, _ in errors.values())
              and all(last < 1e-3 for (name, _), (_, last) in errors.items() if name != "group_norm")))
PYTHON
