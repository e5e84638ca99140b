"""`make bench`: every benchmark, one after the other, each in a process of its own; then what was asked for and what was measured.

    python -m benchmarks [--device cuda] [--full] [--only NAME ...] [--against CHECKOUT] [--minutes 14] [--checkpoint small] [--out FOLDER]

It ends within the minutes and what tidying up takes, however busy the machine is: what was not done by then is "not measured" (--full: no
end). First comes today's build beside the last tagged one (before there is a tag: the first version), or another (benchmarks/against.py).
The full-size UNet is measured against VGen's own module where $VDD_VGEN names a checkout, else against diffusers. --full does both, and
adds torch.compile, 448 x 256, repeats, every number of steps at 480p and 720p five times, 1080p and 2,000 frames. What needs a GPU says
"not measured" where there is none.
"""
from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import common
from benchmarks.against import last_tag

GPU_SIZE = "1280x768"
GRACE = 20                       # seconds that a benchmark has to tidy up when its time is over


def commands(device: str, full: bool, checkpoint: str, out: Path, against: str | None = None) -> dict[str, list[str]]:
    """The command line of every benchmark, in order: "against" where there is another build, and it is the CPU's turn."""
    on = ["--device", device]
    small = [*on, "--checkpoint", checkpoint, "--out", str(out)]
    if device == "cuda":
        unet = [*on, "--sizes", "256x256", "448x256", GPU_SIZE, "--dtypes", "bfloat16", "--variants", "plain", "compiled"]
    else:
        quick = ["--variants", "packed", "--repeats", "2", "--as-found", *(["--against"] if os.environ.get("VDD_VGEN") else [])]
        unet = [*on, *(["--sizes", "256x256", "448x256"] if full else quick)]
    other = ["--against", against, "--checkpoint", checkpoint, "--out", str(out)] if against else []
    other += [] if full else ["--sizes", "256", "720p", "--frames", "4", "--repeats", "1"]
    return {"startup": small, **({"against": other} if against and device == "cpu" else {}), "autoencoder": small,
            "pipeline": [*small, *(["--full"] if full else [])],
            "quality": [*small, *([] if full else ["--clips", "1", "--crop", "96"])],
            "options": [*small, *([] if full or device == "cuda" else ["--no-compile"])], "unet": unet}


def run_within(command: list[str], seconds: float | None) -> int | None:
    """A command's exit status, or None where the time was over: then all that it started is interrupted, to tidy up, and killed."""
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)            # what a shell starts in the background ignores it
    process = subprocess.Popen(command, start_new_session=True, preexec_fn=heard)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        with contextlib.suppress(ProcessLookupError):          # nothing is left of it
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def table_of(out: Path, name: str, title: str, device: str) -> list[dict]:
    """Rows of a result that was written, none where it was not."""
    path = out / (f"{name}.json" if device == "cpu" else f"{name}-{device}.json")
    try:
        return json.loads(path.read_text())["tables"][title]
    except (OSError, KeyError, ValueError):
        return []


def first(rows: list[dict], column: str, **where) -> float | None:
    """The column's value in the first row that fits."""
    values = [row.get(column) for row in rows if all(row.get(key) == value for key, value in where.items())]
    return values[0] if values and isinstance(values[0], float) else None


def target(what: str, value: float | None, bound: float, unit: str, *, at_most: bool = False) -> dict:
    """One row of the summary."""
    asked = f"{'at most' if at_most else 'at least'} {bound:g} {unit}".strip()
    if value is None:
        return {"what": what, "asked": asked, "measured": common.NOT_MEASURED}
    return {"what": what, "asked": asked, "measured": f"{value:.3g} {unit}".strip(), "met": "yes" if (value <= bound) == at_most else "no"}


def shares(rows: list[dict]) -> list[float]:
    """Percent that calls reached of what matrix products did in their turns, where it was measured."""
    return [float(row["of matmul"].rstrip(" %")) for row in rows if "of matmul" in row]


def summary(out: Path) -> list[dict]:
    """What was asked for beside what was measured, from the results that are there."""
    startup = table_of(out, "startup", "startup", "cpu")
    stages = table_of(out, "pipeline", "seconds by stage", "cpu")
    calls, gpu_calls = ([row for row in table_of(common.RESULTS, "unet", "one call", device) if row["network"].startswith("UNet3D")]
                        for device in ("cpu", "cuda"))
    gpu_stages = table_of(out, "pipeline", "seconds by stage", "cuda")
    rows = []
    asked = {"float32": {"official": 1.5, "diffusers": 1.5}, "bfloat16": {"official": 1.8, "diffusers": 2.0}}
    for dtype, bounds in asked.items():
        case = [row for row in calls if row.get("size") == "16 x 256 x 256" and row.get("type") == dtype]
        other = next((name for name in bounds if any(f"x {name}" in row for row in case)), "diffusers")    # the first that was at hand
        ratios = [row[f"x {other}"] for row in case if f"x {other}" in row]                               # the best of our variants
        rows.append(target(f"one tft2v call, 16 x 256 x 256, {dtype}, against {other}", max(ratios, default=None), bounds[other], "x"))
    rows.append(target("the same in bfloat16, of a matrix product's speed", max(shares(case), default=None), 48, "%"))
    clip = {"clip": "16 x 256 x 256", "steps": 1}
    seconds = [s for s in (first(stages, "s", type=dtype, **clip) for dtype in ("bfloat16", "float32")) if s]
    rows.append(target("small, 16 x 256 x 256, 1 step, file to file", min(seconds, default=None), 3, "s", at_most=True))
    rows.append(target("`vdd --help`", first(startup, "s", what="`vdd --help`, the whole process"), 0.5, "s", at_most=True))
    rows.append(target("checkpoint to first frame", first(startup, "s", what="checkpoint to first frame"), 3, "s", at_most=True))
    large = shares([row for row in gpu_calls if row.get("size") == "16 x 1280 x 768"])
    rows.append(target("GPU: tft2v at 16 x 1280 x 768, of a matrix product's speed in bfloat16", max(large, default=None), 45, "%"))
    speed = first(gpu_stages, "frames/s", clip="16 x 1280 x 720", steps=1)
    rows.append(target("GPU: small at 16 x 1280 x 720, 1 step", speed, 30, "frames/s"))
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--only", nargs="+", choices=list(commands("cpu", False, "", Path(), "any")))
    parser.add_argument("--against", default=last_tag(),
                        help="another build to measure beside this one (default: the last tag, else the first version)")
    parser.add_argument("--minutes", type=float, default=14)
    parser.add_argument("--checkpoint", default="small")
    parser.add_argument("--out", type=Path, default=common.RESULTS)
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda":
        import torch
        if not torch.cuda.is_available():
            print("there is no GPU that this PyTorch can use: what needs one is not measured", file=sys.stderr)
            arguments.device = "cpu"
    failed, late, started = [], [], time.monotonic()
    for name, options in commands(arguments.device, arguments.full, arguments.checkpoint, arguments.out, arguments.against).items():
        if arguments.only and name not in arguments.only:
            continue
        since = time.monotonic()
        left = None if arguments.full else started + 60 * arguments.minutes - since
        print(f"== {name}", file=sys.stderr, flush=True)
        module = "pipeline" if name == "against" else name
        status = None if left is not None and left <= 0 else run_within([sys.executable, "-m", f"benchmarks.{module}", *options], left)
        if status != 0:
            (late if status is None else failed).append(name)
        print(f"== {name}: {time.monotonic() - since:.0f} s", file=sys.stderr, flush=True)
    common.write("summary", summary(arguments.out), {"minutes": round((time.monotonic() - started) / 60, 1)}, folder=arguments.out,
                 notes=[f"{what}: {', '.join(names)}." for what, names in (("Failed", failed), ("Not done in time", late)) if names])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
