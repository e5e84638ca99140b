#!/usr/bin/env bash
# A file that safetensors writes can be read by its owner alone, whatever the umask asks for, and also where the
# file was there before with other permissions; and the same tensors and metadata give other bytes in each process.
# Expected: permissions as open() gives them (0644 at a umask of 022), as safetensors 0.7 did, and one file
# for one content. Seen: 0600, as it is written under another name of mode 0600 and renamed; the entries of
# `__metadata__` come in an order of chance. Exits with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
cd "$folder"
umask 022
cat > write.py <<'PYTHON'
import sys
import numpy
from safetensors.numpy import save_file
save_file({"a": numpy.ones(3)}, sys.argv[1], {str(i): "" for i in range(16)})
PYTHON
"$folder/venv/bin/pip" list 2>/dev/null | grep safetensors
touch 0.safetensors
for i in 0 1 2 3; do "$folder/venv/bin/python" write.py $i.safetensors; done
modes=$(stat -c %a ./*.safetensors | sort -u)
different=$(sha256sum ./*.safetensors | cut -d" " -f1 | sort -u | wc -l)
echo "modes of four files: $modes; different files among them: $different"
[ "$modes" = 600 ] && [ "$different" -gt 1 ]
