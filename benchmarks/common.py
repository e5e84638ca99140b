"""What every benchmark needs: medians with their spread, the machine's own ceilings, FLOP counts, tables as JSON and Markdown."""
from __future__ import annotations

import argparse
import functools
import gc
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

RESULTS = Path(__file__).with_name("results")
REPEATS = 5
NOT_MEASURED = "not measured"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def computed_types(device: torch.device | str = "cpu") -> tuple[str, ...]:
    """What of float32 and bfloat16 the device multiplies itself. PyTorch emulates the other, a hundred times slower: nothing to measure."""
    from vdd_model.cpu import cpu_has_bfloat16
    return ("float32", "bfloat16") if torch.device(device).type == "cuda" or cpu_has_bfloat16() else ("float32",)


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated calls."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance between the fastest and the slowest call, as a fraction of the median."""
        return (max(self.seconds) - min(self.seconds)) / 2 / self.median

    def columns(self, prefix: str = "") -> dict[str, float | str]:
        """Columns of a table row: median, and spread in percent."""
        return {f"{prefix}s": self.median, f"{prefix}+-": f"{100 * self.spread:.0f} %"}


def synchronize(device: torch.device | str) -> None:
    """Wait for everything that was queued on the device."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def measure(fn: Callable[[], object], repeats: int = REPEATS, warmup: int = 1, device: torch.device | str = "cpu",
            clock: Callable[[], float] = time.perf_counter) -> Timing:
    """Seconds of `repeats` calls after `warmup` calls, the device's queue included; with `time.process_time` those of processors."""
    for _ in range(warmup):
        fn()
    seconds = []
    for _ in range(repeats):
        synchronize(device)
        started = clock()
        fn()
        synchronize(device)
        seconds.append(clock() - started)
    return Timing(tuple(seconds))


def measure_together(variants: Mapping[str, Callable[[], object]], repeats: int = REPEATS, warmup: int = 1,
                     device: torch.device | str = "cpu") -> dict[str, Timing]:
    """`measure` for several variants whose ratio counts: they take turns, so that a slow minute of the machine hits all of them."""
    for fn in variants.values():
        for _ in range(warmup):
            fn()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, fn in variants.items():
            seconds[name] += measure(fn, 1, 0, device).seconds
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def count_flops(fn: Callable[[], object]) -> int:
    """FLOPs (2 per multiply-add) of the matrix products, convolutions and attention in one call; other work counts as none."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        fn()
    return counter.get_total_flops()


def product_ceiling(name: str, device: str = "cpu", clock: Callable[[], float] = time.perf_counter) -> float:
    """GFLOP/s of a large square matrix product in the type, at this moment."""
    n = 8192 if torch.device(device).type == "cuda" else 2048
    with torch.no_grad():
        a, b = (torch.randn(n, n, device=device, dtype=DTYPES[name]) for _ in range(2))
        return 2 * n**3 / min(measure(lambda: a @ b, 7, 2, device, clock).seconds) / 1e9


@functools.cache
def ceilings(device: str = "cpu", clock: Callable[[], float] = time.perf_counter) -> dict[str, float]:
    """What this machine does at best, measured: matrix product and 3 x 3 convolution in GFLOP/s by type, copy in GB/s (read + write)."""
    cuda = torch.device(device).type == "cuda"
    found: dict[str, float] = {}
    with torch.no_grad():
        for name in computed_types(device):
            found[f"matmul {name}"] = product_ceiling(name, device, clock)
            images, channels, side = (32, 512, 128) if cuda else (8, 128, 64)
            x = torch.randn(images, channels, side, side, device=device, dtype=DTYPES[name])
            weight = torch.randn(channels, channels, 3, 3, device=device, dtype=DTYPES[name])
            x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
            flops = 2 * images * side**2 * channels**2 * 9
            found[f"conv {name}"] = flops / min(measure(lambda: F.conv2d(x, weight, padding=1), 7, 2, device, clock).seconds) / 1e9  # noqa: B023 (called here)
        source = torch.empty(2**30 if cuda else 2**27, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        found["copy"] = 2 * source.numel() / min(measure(lambda: target.copy_(source), 7, 2, device, clock).seconds) / 1e9
    return found


def ceilings_table(device: str = "cpu") -> list[dict]:
    """`ceilings` as rows."""
    return [{"ceiling": name, "value": value, "unit": "GB/s" if name == "copy" else "GFLOP/s"} for name, value in ceilings(device).items()]


def of_ceiling(flops: float, seconds: float, dtype: str, device: str = "cpu") -> dict[str, float | str]:
    """Columns: GFLOP/s, and the share of what this machine's best convolution or matrix product of that type does."""
    found = ceilings(device)
    if f"matmul {dtype}" not in found:
        return {"GFLOP/s": flops / seconds / 1e9, "of ceiling": NOT_MEASURED}
    best = max(found[f"matmul {dtype}"], found[f"conv {dtype}"])
    return {"GFLOP/s": flops / seconds / 1e9, "of ceiling": f"{100 * flops / seconds / 1e9 / best:.0f} %"}


def decibel(error: float) -> float:
    """PSNR in dB of a mean square error of values in [0, 1]."""
    return -10 * math.log10(error) if error else math.inf


def cpu_name() -> str:
    """The processor as the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def machine(device: str = "cpu") -> dict[str, object]:
    """What the figures depend on: versions, processor, cores, load at the moment."""
    found: dict[str, object] = {
        "torch": torch.__version__, "python": platform.python_version(), "processor": cpu_name(), "threads": torch.get_num_threads(),
        "cores": os.cpu_count(), "instructions": torch.backends.cpu.get_cpu_capability(),
    }
    if hasattr(os, "getloadavg"):
        found["load"] = round(os.getloadavg()[0], 2)
    if torch.device(device).type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def cell(value: object) -> str:
    """A table cell: three or four significant digits for a float."""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.2f}" if abs(value) >= 10 else f"{value:.3g}"
    return "" if value is None else str(value)


def markdown(rows: Sequence[Mapping]) -> str:
    """Rows as a Markdown table; the columns are those of all rows, in order of appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell(row.get(column)) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def write(name: str, tables: Mapping[str, Sequence[Mapping]] | Sequence[Mapping], meta: Mapping | None = None, *, device: str = "cpu",
          notes: Iterable[str] = (), folder: Path | None = None) -> Path:
    """Write tables (rows, or {title: rows}) as NAME.json and NAME.md, NAME-DEVICE on another device than the CPU; print the Markdown.

    Returns the Markdown file's path.
    """
    if not isinstance(tables, Mapping):
        tables = {name: tables}
    folder = folder or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    kind = torch.device(device).type
    stem = name if kind == "cpu" else f"{name}-{kind}"
    meta = {**machine(device), **(meta or {})}
    parts = [f"# {name}", ", ".join(f"{key} {cell(value)}" for key, value in meta.items())]
    parts += [f"## {title}\n\n{markdown(rows)}" for title, rows in tables.items()]
    parts += list(notes)
    text = "\n\n".join(parts) + "\n"
    (folder / f"{stem}.json").write_text(json.dumps({"meta": meta, "tables": tables, "notes": list(notes)}, indent=1) + "\n")
    path = folder / f"{stem}.md"
    path.write_text(text)
    print(text, flush=True)
    return path


def release() -> None:
    """Give memory back between benchmarks."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def checkpoint_file(folder: Path | str, name: str = "small") -> tuple[str, str]:
    """(checkpoint, what it is): the built-in model or the file `name`; without the built-in one, a file in `folder` with random weights.

    Speed does not depend on the values of the weights, quality does.
    """
    from vdd_model.checkpoint.store import BUILT_IN, save
    if name not in BUILT_IN or BUILT_IN[name].exists():
        return str(name), Path(name).name
    path = Path(folder) / f"{name}-random.safetensors"
    if not path.exists():
        save(random_model(name), path, dtype=torch.float16)
    return str(path), f"{name} with random weights"


def random_model(name: str = "small"):
    """A preset's model with random weights in every layer, those that training starts at zero included."""
    from vdd_model.config import preset
    from vdd_model.networks.model import DeblurModel
    torch.manual_seed(0)
    model = DeblurModel(preset(name)).eval().requires_grad_(False)
    for parameter in model.parameters():
        if not parameter.any():
            parameter.normal_(std=0.02)
    return model


def parser(description: str | None, size: tuple[int, int] = (256, 256)) -> argparse.ArgumentParser:
    """The options that the benchmarks of one clip share."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--frames", type=int, default=16)
    made.add_argument("--size", type=int, nargs=2, default=list(size), metavar=("WIDTH", "HEIGHT"))
    made.add_argument("--device", default="cpu")
    made.add_argument("--checkpoint", default="small")
    made.add_argument("--repeats", type=int, default=REPEATS)
    made.add_argument("--out", type=Path, default=RESULTS)
    return made


def data_parser(description: str | None, out: Path = RESULTS) -> argparse.ArgumentParser:
    """The options that the benchmarks on the two test sets share."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(os.environ.get("VDD_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    made.add_argument("--data", type=Path, default=shared / "data", help="folder with gopro_layout/ and val_photos/ (%(default)s)")
    made.add_argument("--out", type=Path, default=out)
    return made


def as_command_line() -> None:
    """Set this process up as the command line does (threads, memory allocator), so that figures are those that users see."""
    from vdd_model.cpu import allocator
    allocator.keep_freed_memory()
