"""Start-up: `vdd --help`, and from nothing to the first deblurred frame; no training code is imported on the way.

    python -m benchmarks.startup [--frames 16] [--size 256 256] [--repeats 5]
"""
from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time

from benchmarks import common

TRAINING = ("train", "accelerate", "matplotlib", "lpips", "scipy", "tensorboard", "kornia")     # packages that inference must not need
FIRST_FRAME = """
import time; started = time.perf_counter()
import json, sys
checkpoint, device, frames, width, height = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
from vdd_model.cpu.allocator import keep_freed_memory
keep_freed_memory()
import torch
imported = time.perf_counter()
from vdd_model.inference.pipeline import Deblurrer
deblurrer = Deblurrer(checkpoint, device=device)
loaded = time.perf_counter()
clip = torch.rand(frames, height, width, 3)
clip_made = time.perf_counter()
next(iter(deblurrer.stream(clip, total=frames)))
first = time.perf_counter()
print(json.dumps({"import torch": imported - started, "checkpoint": loaded - imported, "first frames": first - clip_made,
                  "modules": sorted({name.split(".")[0] for name in sys.modules})}))
"""


def seconds_of(command: list[str]) -> float:
    """Wall-clock seconds of a process that must succeed."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def first_frame(checkpoint: str, device: str, frames: int, width: int, height: int) -> dict:
    """Seconds to import, to load and to the first chunk of frames, and the packages imported, in a fresh process."""
    done = subprocess.run([sys.executable, "-c", FIRST_FRAME, checkpoint, device, *map(str, (frames, width, height))], check=True,
                          stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def rows(checkpoint: str, frames: int = 16, size: tuple[int, int] = (256, 256), device: str = "cpu",
         repeats: int = common.REPEATS) -> list[dict]:
    """The table."""
    help_ = common.Timing(tuple(seconds_of([sys.executable, "-m", "vdd_model", "--help"]) for _ in range(repeats)))
    empty = common.Timing(tuple(seconds_of([sys.executable, "-c", "pass"]) for _ in range(repeats)))
    runs = [first_frame(checkpoint, device, frames, *size) for _ in range(repeats + 1)][1:]         # the first one fills the file cache
    parts = {name: common.Timing(tuple(run[name] for run in runs)) for name in ("import torch", "checkpoint", "first frames")}
    both = common.Timing(tuple(run["checkpoint"] + run["first frames"] for run in runs))
    loaded = [name for name in TRAINING if name in runs[0]["modules"]]
    return [
        {"what": "`vdd --help`, the whole process", **help_.columns(), "asked": "0.5 s"},
        {"what": "an empty Python process", **empty.columns()},
        {"what": "import torch", **parts["import torch"].columns()},
        {"what": "checkpoint: build and load", **parts["checkpoint"].columns()},
        {"what": f"first frames of {frames} x {size[0]} x {size[1]}", **parts["first frames"].columns()},
        {"what": "checkpoint to first frame", **both.columns(), "asked": "3 s"},
        {"what": "training packages imported", "s": ", ".join(loaded) or "none", "asked": "none"},
    ]


def main(argv: list[str] | None = None) -> None:
    arguments = common.parser(__doc__).parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, what = common.checkpoint_file(folder, arguments.checkpoint)
        table = rows(checkpoint, arguments.frames, tuple(arguments.size), arguments.device, arguments.repeats)
    common.write("startup", table, {"checkpoint": what}, device=arguments.device, folder=arguments.out)


if __name__ == "__main__":
    main()
