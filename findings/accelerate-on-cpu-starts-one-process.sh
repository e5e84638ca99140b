#!/usr/bin/env bash
# `accelerate launch --cpu --num_processes 2 script.py`, for two cores or for trying a distributed training without a GPU.
# Expected: two processes, as `torchrun --nproc_per_node 2` starts them, or a word that it cannot. Seen: one process of a world of one,
# exit status 0 and no word about it, so that a batch is half as large as planned and nothing distributed was tried; processes on a CPU
# are started for an MPI hostfile only. The same with --multi_gpu in the place of --cpu starts two, on the CPU where there is no GPU.
# Exits with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check accelerate==1.15.0 torch==2.14.1 numpy==2.4.6
cd "$folder"
cat > script.py <<'PYTHON'
from accelerate import Accelerator
state = Accelerator(cpu=True).state
print(f"process {state.process_index} of {state.num_processes}", flush=True)
PYTHON
export CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 HF_HOME="$folder"
common="--num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
"$folder/venv/bin/pip" list 2>/dev/null | grep -E "^(accelerate|torch) "
started() {
    "$@" > out.txt 2> err.txt
    echo "$*:" | sed "s|$folder/venv/bin/||"
    sort out.txt | tee found.txt
    if grep -i process err.txt; then exit 1; fi
}
started "$folder/venv/bin/accelerate" launch --cpu $common script.py
cpu=$(cat found.txt)
started "$folder/venv/bin/accelerate" launch --multi_gpu --main_process_port 0 $common script.py
gpu=$(cat found.txt)
started "$folder/venv/bin/torchrun" --standalone --nproc_per_node 2 script.py
both="process 0 of 2
process 1 of 2"
[ "$cpu" = "process 0 of 1" ] && [ "$gpu" = "$both" ] && [ "$(cat found.txt)" = "$both" ]
