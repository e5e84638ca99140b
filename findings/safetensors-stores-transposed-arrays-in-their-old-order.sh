#!/usr/bin/env bash
# safetensors.numpy.save_file of arrays that do not lie row by row (a.T, x.transpose(2, 0, 1) of a picture, np.asfortranarray, a[:, ::2]).
# Expected: the array comes back, as up to safetensors 0.7.0, or an error, as safetensors.torch raises for such tensors. Seen with 0.8.0:
# shape and type come back with the values in the order of the memory below, without an error; only the docstring asks for contiguous ones.
# safetensors.torch, too, stores what lies in memory of a spectrum that PyTorch conjugates when it is looked at: conj(), contiguous to
# PyTorch, comes back unconjugated. Exits with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/look.py" <<'PYTHON'
import sys
import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file
old = safetensors.__version__ == "0.7.0"
array = np.arange(6, dtype=np.float32).reshape(2, 3)
picture = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
wrong = []
for name, value in (("as it is", array), ("a.T", array.T), ("asfortranarray(a)", np.asfortranarray(array)), ("a[:, ::2]", array[:, ::2]),
                    ("picture.transpose(2, 0, 1)", picture.transpose(2, 0, 1))):
    save_file({"a": value}, "a.safetensors")
    found = load_file("a.safetensors")["a"]
    same = np.array_equal(found, value)
    print(f"safetensors {safetensors.__version__}, {name}: {'the same' if same else 'not the same'}, first values {value.flat[:4]} -> {found.flat[:4]}")
    wrong += [name] * (found.shape != value.shape or same != (old or name == "as it is"))
if not old:
    import torch
    from safetensors.torch import load, save
    spectrum = torch.tensor([1 + 2j, 3 - 4j])
    for name, value in (("conj()", spectrum.conj()), ("conj().resolve_conj()", spectrum.conj().resolve_conj())):
        found = load(save({"a": value}))["a"]
        print(f"PyTorch {torch.__version__}, {name}: {value.tolist()} -> {found.tolist()}")
        wrong += [name] * (torch.equal(found, value) != name.endswith("resolve_conj()"))
print("as it was" if not wrong else f"not as it was: {wrong}")
sys.exit(bool(wrong))
PYTHON
cd "$folder"
for version in 0.7.0 0.8.0; do
    python3 -m venv "$folder/venv-$version"
    extra=torch==2.14.1
    [ "$version" = 0.8.0 ] || extra=
    "$folder/venv-$version/bin/pip" install --quiet --disable-pip-version-check "safetensors==$version" numpy==2.4.6 packaging==26.0 $extra
    "$folder/venv-$version/bin/python" look.py
done
