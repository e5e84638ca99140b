#!/usr/bin/env bash
# oneDNN's linear layer with a second operand in the same call, as PyTorch has it for x86 CPUs
# (torch.ops.mkldnn._linear_pointwise.binary, what its compiler puts in place of `linear(x) + other`), where
# the other operand is a column (N, 1).
# Expected: about the time of a row (1, C) or of a whole matrix (N, C), all of which broadcast as usual.
# Seen: the right values, a thousand times slower or more: what has a factor for every row is left to
# oneDNN's reference code. Exits with 1 when that changes.
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
print("PyTorch", torch.__version__, "oneDNN", torch.backends.mkldnn.is_available(), torch.backends.cpu.get_cpu_capability())
torch.set_grad_enabled(False)
torch.set_num_threads(1)
torch.manual_seed(0)
fused = torch.ops.mkldnn._linear_pointwise.binary
x, weight, bias = torch.randn(512, 64), torch.randn(64, 64), torch.randn(64)
seconds = {}
for name, other in (("row", torch.randn(1, 64)), ("matrix", torch.randn(512, 64)), ("column", torch.randn(512, 1))):
    taken = []
    for _ in range(4):
        started = time.process_time()
        found = fused(x, other, weight, bias, "add")
        taken.append(time.process_time() - started)
    right = torch.allclose(found, torch.nn.functional.linear(x, weight, bias) + other, atol=1e-4)
    seconds[name] = min(taken)
    print(f"{name} {tuple(other.shape)}: {1e3 * seconds[name]:.3f} ms, right: {right}")
print(f"a column takes {seconds['column'] / seconds['row']:.0f} times as long as a row")
sys.exit(seconds["column"] < 100 * seconds["row"])
PYTHON
