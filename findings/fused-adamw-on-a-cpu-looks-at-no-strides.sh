#!/usr/bin/env bash
# AdamW(fused=True) on a CPU, weights of a convolution in channels_last, moments loaded from a file that keeps no strides (safetensors).
# Expected: as with fused=False, a resumed run goes on as if it had not been interrupted, or load_state_dict gives the moments the
# weights' memory format, or the step raises. Seen: no word, and the step pairs weights with the moments of other elements: it walks all
# of them in the order in which they lie in memory. The weights are off by twice the learning rate after two steps.
# Exits with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6 safetensors==0.8.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import safetensors
import torch
from safetensors.torch import load_file, save_file
print("PyTorch", torch.__version__, "safetensors", safetensors.__version__)

def weights(fused, resumed):
    """Of a convolution after four steps, the optimizer's moments taken through a file behind the second."""
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(3, 4, 2, bias=False).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=fused)
    for step in range(4):
        if step == 2 and resumed:
            state = optimizer.state_dict()
            save_file({key: value.contiguous() for key, value in state["state"][0].items()}, "moments.safetensors")
            state["state"][0] = load_file("moments.safetensors")
            optimizer.load_state_dict(state)
        layer.weight.grad = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
        optimizer.step()
    return layer.weight.detach()

off = {}
for fused in (False, True):
    off[fused] = float((weights(fused, True) - weights(fused, False)).abs().max())
    print(f"fused={fused}: resumed and uninterrupted weights differ by up to {off[fused]:.1e}, at a learning rate of 0.1")
sys.exit(not (off[False] == 0 and off[True] > 0.05))
PYTHON
