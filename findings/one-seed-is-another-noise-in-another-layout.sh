#!/usr/bin/env bash
# The noise that a diffusion model starts from, drawn by PyTorch on a CPU with one seed.
# Expected: one seed, one noise: fewer numbers are the beginning of more, and the layout of memory, which changes no values elsewhere,
# changes none here. Seen: of a tensor in the plain layout and 16 numbers or more eight at a time are made, of a channels-last one or of
# fewer numbers one after the other, in the order of memory. So randn_like of latents that were turned to channels-last, for speed, is
# another noise and the result another picture; 15 numbers are not the beginning of 16, nor 16 that of 17, whose last 16 are drawn anew,
# and 16 are that of 32. Exits with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import torch
print("PyTorch", torch.__version__)


def seeded(draw):
    torch.manual_seed(0)
    return draw()


latents = torch.zeros(1, 4, 8, 8)
plain = seeded(lambda: torch.randn_like(latents))
turned = seeded(lambda: torch.randn_like(latents.to(memory_format=torch.channels_last)))
drawn = {count: seeded(lambda: torch.randn(count)) for count in (15, 16, 17, 32)}
same = torch.equal(plain, turned)
like = [torch.equal(plain.flatten()[:16], drawn[16]), torch.equal(turned.permute(0, 2, 3, 1).flatten()[:15], drawn[15])]
print("the same noise in both layouts:", same, "- in the order of memory plain begins as 16 numbers do, channels-last as 15 do:", *like)
for count, numbers in drawn.items():
    print(f"{count} numbers begin with", [round(x, 3) for x in numbers[:4].tolist()])
alike = {(few, many): torch.equal(drawn[few], drawn[many][:few]) for few in drawn for many in drawn if few < many}
print("fewer are the beginning of more:", {f"{few} of {many}": equal for (few, many), equal in alike.items()})
sys.exit(same or not all(like) or [pair for pair, equal in alike.items() if equal] != [(16, 32)])
PYTHON
