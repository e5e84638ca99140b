#!/usr/bin/env bash
# accelerate's gradient accumulation, accumulate() and backward(), where the batches of an epoch are no multiple of the steps to accumulate.
# Expected: each optimizer step takes the mean of the batches that went into it; or the last, incomplete ones wait for the next epoch. Seen: the
# epoch's last batch makes a step of its own whatever has come together, and its losses were divided by the full number all the same: of 9
# batches and 8 to accumulate the last one makes a step with 1/8 of its gradient, without a word. A plain loop that divides by what came together
# has 1. Exits with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check accelerate==1.15.0 torch==2.14.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import accelerate
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset
print("accelerate", accelerate.__version__, "- PyTorch", torch.__version__)
found = {}
for batches, count in ((8, 8), (9, 8), (10, 4)):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=count)
    model = torch.nn.Linear(1, 1, bias=False)
    model, optimizer, loader = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=1.0),
                                                   DataLoader(TensorDataset(torch.ones(batches, 1)), batch_size=1))
    steps, members = [], 0
    for (x,) in loader:
        with accelerator.accumulate(model):
            before, members = model.weight.item(), members + 1
            accelerator.backward(model(x).mean())                       # the gradient of each batch is 1, and so is their mean
            optimizer.step()
            optimizer.zero_grad()
            if accelerator.sync_gradients:
                steps.append((members, round(before - model.weight.item(), 4)))
                members = 0
    found[batches, count] = steps
    print(f"{batches} batches, {count} to accumulate:", ", ".join(f"a step of {size} batches by {step:g}" for size, step in steps))
sys.exit(found != {(8, 8): [(8, 1.0)], (9, 8): [(8, 1.0), (1, 0.125)], (10, 4): [(4, 1.0), (4, 1.0), (2, 0.5)]})
PYTHON
