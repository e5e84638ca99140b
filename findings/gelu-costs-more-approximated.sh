#!/usr/bin/env bash
# The two forms of GELU in PyTorch on a CPU: the exact one, of the error function, and the one that approximates it with a tanh, which was
# made to cost less and which many a network names in its configuration.
# Expected: the approximation takes as long or less. Seen (x86, with AVX2 and with AVX-512, one thread, 100,000 values): it takes 4.5 x as long in
# float32 and in bfloat16, up to 8 x with AVX2, for values that differ by less than 0.0005: the exact one is oneDNN's, the other is not. Below some
# thousand values oneDNN's own start is what takes longest and it is the other way round. Exits with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import os, subprocess, sys
PART = """
import time
import torch
from torch.nn.functional import gelu
torch.set_num_threads(1)
worst = 9.0
for dtype in (torch.float32, torch.bfloat16):
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(0)).to(dtype)
    seconds = {"none": [], "tanh": []}
    for _ in range(200):
        for name, taken in seconds.items():
            began = time.process_time()
            gelu(x, approximate=name)
            taken.append(time.process_time() - began)
    ratio = min(seconds["tanh"]) / min(seconds["none"])
    worst = min(worst, ratio)
    apart = (gelu(x.double(), approximate="tanh") - gelu(x.double())).abs().max().item()
    print(f"{torch.backends.cpu.get_cpu_capability()}, {dtype}: the approximation takes {ratio:.1f} x as long as the exact one, {apart:.0e} apart")
raise SystemExit(worst < 2)
"""
import torch
print("PyTorch", torch.__version__)
held = {torch.backends.cpu.get_cpu_capability().lower(), "avx2"}
codes = [subprocess.run([sys.executable, "-c", PART], env={**os.environ, "ATEN_CPU_CAPABILITY": name}).returncode for name in sorted(held)]
sys.exit(any(codes))
PYTHON
