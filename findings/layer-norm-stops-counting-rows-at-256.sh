#!/usr/bin/env bash
# The gradients of layer_norm's weight and bias, PyTorch on a CPU, of what came in as bfloat16: each is a sum over all rows (pixels, tokens).
# Expected: sums that are taken in float32 and rounded at the end, as the bias of a linear layer, group_norm and sum() have them; at least where
# weight and bias are float32, as under autocast. Seen: they are taken in bfloat16 row by row, one sum for each thread, whatever the weights are.
# Of gradients of 1 it stands still at 256: 16,384 rows (a 128 x 128 picture) give 256 with one thread and 512 with two in the place of 16,384;
# of noise around a mean of 0.5 the bias's gradient is off by 87 %, the weight's by 12 %. float16 stops at 2,048. The output and the gradient of the
# input are right to within rounding, so that nothing tells. Exits with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import os, subprocess, sys
PART = """
import torch
from torch.nn.functional import group_norm, layer_norm, linear
WIDTH, rows = 64, 16384
noise = lambda seed: torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed))


def gradients(norm, x, incoming, dtype):
    weight, bias = (torch.full((WIDTH,), value, dtype=dtype, requires_grad=True) for value in (1.0, 0.0))
    return [g.float() for g in torch.autograd.grad(norm(x, weight, bias), (weight, bias), incoming)]


def layer(x, weight, bias):
    return layer_norm(x, (WIDTH,), weight, bias)


x, ones = noise(0), torch.ones(rows, WIDTH)
wrong = []
for threads in (1, 2):
    torch.set_num_threads(threads)
    for dtype, stop in ((torch.bfloat16, 256), (torch.float16, 2048), (torch.float32, None)):
        for weights in {dtype: 0, torch.float32: 0}:
            bias = gradients(layer, x.to(dtype), ones.to(dtype), weights)[1]
            print(f"{torch.backends.cpu.get_cpu_capability()}, {threads} threads, {dtype}, weights {weights}: {rows} rows of 1 make {bias[0]:.0f}")
            wrong += [(threads, dtype, weights)] if not (bias == (threads * stop if stop else rows)).all() else []
torch.set_num_threads(1)
half = ones.bfloat16()
other = {"linear": gradients(lambda x, weight, bias: linear(x, weight.diag(), bias), x.bfloat16(), half, torch.bfloat16)[1][0].item(),
         "group_norm": gradients(lambda x, weight, bias: group_norm(x, 4, weight, bias), x.bfloat16(), half, torch.bfloat16)[1][0].item(),
         "sum": half.sum(0)[0].item()}
print("bfloat16 elsewhere:", other)
wrong += [name for name, value in other.items() if value != rows]
incoming = (noise(1) + 0.5).bfloat16()
with torch.autocast("cpu", torch.bfloat16):
    seen = gradients(layer, x.bfloat16(), incoming, torch.float32)
right = gradients(layer, x.bfloat16().float(), incoming.float(), torch.float32)
off = [((a - b).norm() / b.norm()).item() for a, b in zip(seen, right)]
print(f"under autocast, gradients of 0.5 +- 1: the weight's is off by {off[0]:.0%}, the bias's by {off[1]:.0%}")
wrong += ["noise"] if not (off[0] > 0.03 and off[1] > 0.6) else []
pair = []
for dtype in (torch.bfloat16, torch.float32):
    given = x.bfloat16().to(dtype).requires_grad_()
    output = layer_norm(given, (WIDTH,), torch.ones(WIDTH, dtype=dtype), torch.zeros(WIDTH, dtype=dtype))
    pair.append((output.detach().float(), torch.autograd.grad(output, given, incoming.to(dtype))[0].float()))
off = [((a - b).norm() / b.norm()).item() for a, b in zip(*pair)]
print(f"the output is off by {off[0]:.1%}, the input's gradient by {off[1]:.1%}")
wrong += ["output"] if max(off) > 0.01 else []
raise SystemExit(f"not as it was: {wrong}" if wrong else 0)
"""
import torch
print("PyTorch", torch.__version__)
held = {torch.backends.cpu.get_cpu_capability().lower(), "avx2"}
codes = [subprocess.run([sys.executable, "-c", PART], env={**os.environ, "ATEN_CPU_CAPABILITY": name}).returncode for name in sorted(held)]
sys.exit(any(codes))
PYTHON
