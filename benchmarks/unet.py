"""One UNet call against diffusers' UNet3DConditionModel of the same widths, and against VGen's own module where a checkout is at hand.

    python -m benchmarks.unet [--sizes 256x256 448x256] [--dtypes float32 bfloat16] [--vgen /path/to/VGen] [--device cuda]

diffusers lives in its own environment, benchmarks/.venv, made from benchmarks/requirements.txt when it is missing; torch is the
project's own on both sides. Every network has random weights and runs alone, one after the other. The others run as their users find
them: keeping freed memory (vdd_model/allocator.py) is one of this project's means. "official, memory kept" is VGen's module with it.
"""
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from vdd_model.config import UNetConfig
from vdd_model.fused import channels_last, pack
from vdd_model.unet3d import UNet3D

from .common import DTYPES, NOT_MEASURED, REPEATS, Timing, as_command_line, ceilings_table, count_flops, measure, of_ceiling, release, write

HERE = Path(__file__).parent
TOKENS = 81                                                # 77 of the text and 4 of the image
KEPT = "official, memory kept"


def build(config: UNetConfig, dtype: torch.dtype, device: str) -> UNet3D:
    """A UNet with random weights, made without a second copy in memory."""
    model = UNet3D(config, device="meta", dtype=dtype).to_empty(device=device).eval().requires_grad_(False)
    for p in model.parameters():
        p.uniform_(-0.02, 0.02)
    return model


def flops(config: UNetConfig, frames: int, height: int, width: int) -> int:
    """FLOPs of one call, the context's keys and values (computed once per clip) not among them."""
    model = UNet3D(config, device="meta")
    x, t, context = (torch.empty(s, device="meta") for s in ((1, 4, frames, height, width), (1,), (1, TOKENS, config.context_dim)))
    cache = model.cache_context(context)
    return count_flops(lambda: model(x, t, cache))


def measure_ours(config: UNetConfig, case: dict, variant: str) -> dict:
    """Seconds of one call. variant: "plain", "packed" (weights in oneDNN's layout), "compiled" (torch.compile)."""
    device, dtype = case["device"], DTYPES[case["dtype"]]
    model = build(config, dtype, device)
    if device == "cuda":
        channels_last(model)
    x = torch.randn(1, 4, case["frames"], case["height"], case["width"], device=device, dtype=dtype)
    t = torch.full((1,), 500, device=device)
    warmup, compile_seconds = 1, None
    with torch.no_grad():
        context = model.cache_context(torch.randn(1, TOKENS, config.context_dim, device=device, dtype=dtype))
        call = model
        if variant == "packed":
            pack(model)
        elif variant == "compiled":
            call = torch.compile(model, mode="max-autotune-no-cudagraphs" if device == "cuda" else None)
            start = time.perf_counter()
            call(x, t, context)
            compile_seconds, warmup = time.perf_counter() - start, 3
        if case["processor_time"]:
            timing = processor_time(lambda: call(x, t, context), case["repeats"])
        else:
            timing = measure(lambda: call(x, t, context), case["repeats"], warmup, device)
    parameters = sum(p.numel() for p in UNet3D(config, device="meta").parameters())
    return {"parameters": parameters, "flops": flops(config, case["frames"], case["height"], case["width"]), "seconds": timing.seconds,
            "compile s": compile_seconds}


def processor_time(fn: Callable[[], object], repeats: int) -> Timing:
    """Processor seconds of `repeats` calls after one; with one thread, other work on the machine disturbs them little."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.process_time()
        fn()
        seconds.append(time.process_time() - start)
    return Timing(tuple(seconds[1:]))


def reference_python() -> tuple[str, dict[str, str]] | None:
    """The other environment's interpreter and variables, made when it is missing; None when it cannot be made."""
    folder = HERE / ".venv"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p.endswith("site-packages"))}
    if subprocess.run([python, "-c", "import diffusers"], capture_output=True, env=environment).returncode if python.exists() else True:
        try:
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            subprocess.run([python, "-m", "pip", "install", "-q", "-r", HERE / "requirements.txt"], check=True)
        except (subprocess.CalledProcessError, OSError) as error:
            print(f"diffusers is not measured: its environment {folder} could not be made ({error})", file=sys.stderr)
            return None
    return str(python), environment


def measure_reference(name: str, case: dict) -> dict | None:
    """Run `unet_reference.py` for the case; None when that is not possible here."""
    if name == KEPT:
        name, case = "official", {**case, "keep_memory": True}
    found = reference_python() if name == "diffusers" else (sys.executable, dict(os.environ))
    if found is None:
        return None
    python, environment = found
    done = subprocess.run([python, HERE / "unet_reference.py", name, json.dumps(case)], capture_output=True, text=True, env=environment)
    if done.returncode:
        print(f"{name} is not measured: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'it failed'}", file=sys.stderr)
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write benchmarks/results/unet.{json,md}."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.unet", description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=["256x256"], help="frame width x height in pixels (default: 256x256)")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=list(DTYPES))
    parser.add_argument("--variants", nargs="+", default=["plain", "packed"], choices=["plain", "packed", "compiled"])
    parser.add_argument("--against", nargs="*", default=["diffusers"], choices=["diffusers"])
    parser.add_argument("--vgen", default=os.environ.get("VDD_VGEN"), help="checkout of VGen: its own module is measured too")
    parser.add_argument("--as-found", action="store_true", help="VGen's module only as it is, not with freed memory kept too")
    parser.add_argument("--dim", type=int, default=320, help="channels of the first level (320: the full-size model)")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--processor-time", action="store_true", help="processor time with one thread, for a machine that does other work")
    args = parser.parse_args(argv)
    if args.processor_time:
        args.threads = 1
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device == "cuda" and not torch.cuda.is_available():
        write("unet", [{"network": "UNet3D", "size": size, "s": NOT_MEASURED} for size in args.sizes], {"device": "no GPU here"})
        return
    as_command_line()                                      # the others run as their users find them
    config = UNetConfig(dim=args.dim)
    official = ["official"] if args.as_found or args.device != "cpu" else ["official", KEPT]
    others = [*args.against, *(official if args.vgen else [])]
    variants = [v for v in args.variants if v != "packed" or args.device == "cpu"]
    clock = "processor time, 1 thread" if args.processor_time else "wall clock"
    rows = []
    for size in args.sizes:
        width, height = (int(n) // 8 for n in size.split("x"))
        for dtype in args.dtypes:
            case = {"frames": args.frames, "height": height, "width": width, "dtype": dtype, "device": args.device, "tokens": TOKENS,
                    "repeats": args.repeats, "threads": args.threads, "vgen": args.vgen,
                    "processor_time": args.processor_time, **vars(config)}
            found: dict[str, dict | None] = {name: measure_reference(name, case) for name in others}
            for variant in variants:
                found[f"UNet3D, {variant}"] = measure_ours(config, case, variant)
                release()
            rows += table(found, f"{args.frames} x {width * 8} x {height * 8}", dtype, None if args.processor_time else args.device, others)
    tables = {"one call": rows}
    if not args.processor_time:
        tables["ceilings"] = ceilings_table(args.device)
    write("unet", tables, {"dim": args.dim, "repeats": args.repeats, "clock": clock}, device=args.device,
          notes=["FLOPs: two per multiply-add of the plain products and convolutions; Winograd's filtering (float32, packed) makes do with "
                 "fewer, and so can pass the ceiling. `x NAME`: how many times faster than NAME. All networks have random weights."])


def table(found: dict[str, dict | None], size: str, dtype: str, device: str | None, others: list[str]) -> list[dict]:
    """Rows of one case, every network with its share of the device's ceiling (none: left out) and its ratio to the others."""
    rows = []
    for name, result in found.items():
        row = {"size": size, "type": dtype, "network": name}
        if result is None:
            rows.append({**row, "s": NOT_MEASURED})
            continue
        timing = Timing(tuple(result["seconds"]))
        row |= {"M parameters": result["parameters"] / 1e6, "TFLOP": result["flops"] / 1e12, **timing.columns(),
                **(of_ceiling(result["flops"], timing.median, dtype, device) if device else {})}
        for other in others:
            if other != name and found[other]:
                row[f"x {other}"] = Timing(tuple(found[other]["seconds"])).median / timing.median
        if result.get("compile s"):
            row["compile s"] = result["compile s"]
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
