"""One UNet call against diffusers' UNet3DConditionModel of the same widths, and against VGen's own module where a checkout is at hand.

    python -m benchmarks.unet [--sizes 256x256 448x256] [--dtypes float32 bfloat16] [--vgen /path/to/VGen] [--device cuda]

diffusers lives in its own environment, benchmarks/.venv, made from benchmarks/requirements.txt when it is missing; torch is the
project's own on both sides. Every network has random weights; ours and another make their calls in turn, so that a slow minute of the
machine hits both (two full-size networks in memory: 13 GB in float32). The others run as their users find them: keeping freed memory
(vdd_model/cpu/allocator.py) is one of this project's means. "official, memory kept" is VGen's module with it.
"""
from __future__ import annotations

import argparse
import functools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from vdd_model.config import UNetConfig
from vdd_model.cpu import accelerate
from vdd_model.networks.layers import channels_last
from vdd_model.networks.unet3d import UNet3D

from .common import (
    DTYPES,
    NOT_MEASURED,
    REPEATS,
    Timing,
    as_command_line,
    ceilings_table,
    computed_types,
    count_flops,
    product_ceiling,
    release,
    synchronize,
    write,
)

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


class Ours:
    """UNet3D in this process. variant: "plain", "fused" or "packed" (vdd_model/cpu; weights in oneDNN's layout), "compiled"
    (torch.compile)."""

    def __init__(self, config: UNetConfig, case: dict, variant: str):
        device, dtype = case["device"], DTYPES[case["dtype"]]
        self.device, self.clock = device, time.process_time if case["processor_time"] else time.perf_counter
        model = build(config, dtype, device)
        if device == "cuda":
            channels_last(model)
        if variant in ("fused", "packed"):
            accelerate(model, packed=variant == "packed")
        mode = "max-autotune-no-cudagraphs" if device == "cuda" else None
        self.network = torch.compile(model, mode=mode) if variant == "compiled" else model
        x = torch.randn(1, 4, case["frames"], case["height"], case["width"], device=device, dtype=dtype)
        with torch.no_grad():
            context = model.cache_context(torch.randn(1, TOKENS, config.context_dim, device=device, dtype=dtype))
        self.inputs = x, torch.full((1,), 500, device=device), context
        parameters = sum(p.numel() for p in UNet3D(config, device="meta").parameters())
        self.about = {"parameters": parameters, "flops": flops(config, case["frames"], case["height"], case["width"])}
        first = self.seconds()
        if variant == "compiled":
            self.about["compile s"] = first
            self.seconds(), self.seconds()

    @torch.no_grad()
    def seconds(self) -> float:
        """Of one call."""
        synchronize(self.device)
        start = self.clock()
        self.network(*self.inputs)
        synchronize(self.device)
        return self.clock() - start


@functools.cache
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


class Other:
    """Another network in a process of its own, which makes a call when it is asked to. Raises OSError where it cannot run."""

    def __init__(self, name: str, case: dict):
        if name == KEPT:
            name, case = "official", {**case, "keep_memory": True}
        found = reference_python() if name == "diffusers" else (sys.executable, dict(os.environ))
        if found is None:
            raise OSError("it has no environment")
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen([found[0], HERE / "unet_reference.py", name, json.dumps(case)], text=True, env=found[1],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors)
        self.about = json.loads(self._line())

    def _line(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            self.close()
            self.errors.seek(0)
            raise OSError((self.errors.read().strip().splitlines() or ["it failed"])[-1])
        return line

    def seconds(self) -> float:
        """Of one call."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self._line())

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()


def in_turns(ours: Ours, others: Sequence[str], case: dict) -> dict[str, dict]:
    """Calls of ours in turn with calls of every other network, one other after the other, and with large matrix products: a slow minute of
    the machine hits them all.

    Returns name -> {"seconds", "ceilings": GFLOP/s of a product before each call, "x": how many times faster ours was in the same minutes,
    and what is known of the network}; ours is "".
    """
    found: dict[str, dict] = {"": {**ours.about, "seconds": [], "ceilings": []}}

    def turn(call: Callable[[], float]) -> tuple[float, float]:
        """Seconds of a call, and the product's GFLOP/s before it."""
        ceiling = math.nan if case["processor_time"] else product_ceiling(case["dtype"], case["device"])
        return call(), ceiling

    def kept(name: str, turns: Sequence[tuple[float, float]]) -> Timing:
        seconds, ceilings = zip(*turns)
        found[name]["seconds"] += seconds
        found[name]["ceilings"] += ceilings
        return Timing(seconds)

    for name in others:
        try:
            other = Other(name, case)
        except (OSError, ValueError) as error:
            print(f"{name} is not measured: {error}", file=sys.stderr)
            continue
        pairs = [(turn(other.seconds), turn(ours.seconds)) for _ in range(case["repeats"])]
        other.close()
        found[name] = {**other.about, "seconds": [], "ceilings": []}
        theirs, own = (kept(who, turns) for who, turns in zip((name, ""), zip(*pairs)))
        found[name]["x"] = theirs.median / own.median
    if not found[""]["seconds"]:
        kept("", [turn(ours.seconds) for _ in range(case["repeats"])])
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write benchmarks/results/unet.{json,md}."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.unet", description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=["256x256"], help="frame width x height in pixels (default: 256x256)")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), help="default: float32 and bfloat16, where the device computes in it")
    parser.add_argument("--variants", nargs="+", default=["plain", "packed"], choices=["plain", "fused", "packed", "compiled"])
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
        for dtype in args.dtypes or computed_types(args.device):
            case = {"frames": args.frames, "height": height, "width": width, "dtype": dtype, "device": args.device, "tokens": TOKENS,
                    "repeats": args.repeats, "threads": args.threads, "vgen": args.vgen,
                    "processor_time": args.processor_time, **vars(config)}
            for variant in variants:
                ours = Ours(config, case, variant)
                found = in_turns(ours, others, case)
                rows += table(found, variant, f"{args.frames} x {width * 8} x {height * 8}", dtype)
                del ours
                release()
    tables = {"one call": rows}
    if not args.processor_time:
        tables["ceilings"] = ceilings_table(args.device)
    write("unet", tables, {"dim": args.dim, "repeats": args.repeats, "clock": clock}, device=args.device,
          notes=["FLOPs: two per multiply-add of the plain products and convolutions; Winograd's filtering (packed) makes do with "
                 "fewer, and so can pass the ceiling. `of matmul`: of what a product of 2048 (GPU: 8192) did just before each call, the "
                 "median. `x NAME`: how many times faster than NAME. All networks have random weights."])


def table(found: dict[str, dict], variant: str, size: str, dtype: str) -> list[dict]:
    """Rows of one case: the other networks, then ours, with its ratio to each; every one with its share of the products in its turns."""
    rows = []
    for name, result in sorted(found.items(), reverse=True):
        timing, flops = Timing(tuple(result["seconds"])), result["flops"]
        share = statistics.median(flops / seconds / ceiling / 1e9 for seconds, ceiling in zip(result["seconds"], result["ceilings"]))
        rows.append({"size": size, "type": dtype, "network": name or f"UNet3D, {variant}", "M parameters": result["parameters"] / 1e6,
                     "TFLOP": flops / 1e12, **timing.columns(), "GFLOP/s": flops / timing.median / 1e9,
                     **({} if math.isnan(share) else {"of matmul": f"{100 * share:.0f} %"})})
    rows[-1] |= {f"x {name}": other["x"] for name, other in found.items() if name}
    rows[-1] |= {"compile s": found[""]["compile s"]} if "compile s" in found[""] else {}
    return rows


if __name__ == "__main__":
    main()
