#!/usr/bin/env bash
# torchvision's way from floats of 0 to 1 to integers, v2.functional.to_dtype(scale=True) and convert_image_dtype, of what a decoder gave in half
# precision, or for a 16-bit file.
# Expected: 1.0 becomes 255, and 65535 of 16 bits, as 1.0 of float32 becomes 255. Seen (x86): white turns black without a word, 0 of float16 and
# bfloat16, and of float32 for uint16: it multiplies by 255.999 or 65535.999, which the type rounds up to 256 or 65536, and the
# conversion wraps around. In a picture it is the highlights that turn into black holes. Exits with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 torchvision==0.29.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import torch
import torchvision
from torchvision.transforms.functional import convert_image_dtype
from torchvision.transforms.v2.functional import to_dtype
print("PyTorch", torch.__version__, "- torchvision", torchvision.__version__)
values = [0.0, 0.25, 0.5, 0.96875, 0.99609375, 1.0]                     # all of them exact in each type
found = {}
for given in (torch.float32, torch.float16, torch.bfloat16):
    for wanted in (torch.uint8, torch.uint16):
        picture = torch.tensor(values).to(given).expand(3, 32, -1).contiguous()
        assert picture[0, 0].tolist() == values
        new, old = (out[0, 0].tolist() for out in (to_dtype(picture, wanted, scale=True), convert_image_dtype(picture, wanted)))
        assert new == old
        found[given, wanted] = new
        print(f"{given} {values} to {wanted}: {new}")
bright = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)).add(0.5).clamp(max=1)
half = to_dtype(bright.half(), torch.uint8, scale=True).float().mean().item() / 255
print(f"a picture of which half is white, mean {bright.mean():.3f}: {half:.3f} by way of float16")
sys.exit(not (found[torch.float32, torch.uint8][-1] == 255 and found[torch.float32, torch.uint16][-1] == 0
              and all(found[given, wanted][-1] == 0 for given in (torch.float16, torch.bfloat16) for wanted in (torch.uint8, torch.uint16))
              and all(row[3] > 0 for row in found.values())))
PYTHON
