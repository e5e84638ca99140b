#!/usr/bin/env bash
# A training's configuration in YAML, read with PyYAML's safe_load: an aspect ratio, a learning rate, what JSON has written.
# Expected: 16:9 is text and 5e-5 a number, as in YAML 1.2; what json.dumps writes is read back, since JSON is YAML. Seen: 16:9 is 969
# (16 x 60 + 9: YAML 1.1 counts to the base of 60) and 4:3 is 243, but 4:90 and 24000/1001 are text; 5e-5, 1e4 and 1.0e4 are text, only
# 5.0e-5 and 1.0e+4 are numbers, so that a rate which json.dumps has written comes back as text. Exits with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check PyYAML==6.0.4
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import json, sys
import yaml
print("PyYAML", yaml.__version__)
expected = {"16:9": 969, "4:3": 243, "30:1": 1801, "4:90": "4:90", "5e-5": "5e-5", "5.0e-5": 5e-5, "1e4": "1e4", "1.0e4": "1.0e4", "1.0e+4": 1e4,
            "24000/1001": "24000/1001", "0:30": "0:30", "010": 8, "1_0": 10}
found = {text: yaml.safe_load(f"key: {text}")["key"] for text in expected}
for text, value in found.items():
    print(f"{text:>10} -> {value!r}")
through_json = yaml.safe_load(json.dumps({"lr": 5e-05}))["lr"]
print("json.dumps(5e-5), read as YAML:", repr(through_json))
sys.exit((found, through_json) != (expected, "5e-05"))
PYTHON
