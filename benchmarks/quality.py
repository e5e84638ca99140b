"""Steps against quality: PSNR and sharpness of `small` for 1 ... 50 steps, exact and with every shortcut, so that no speed is bought
silently, and what a mean over orientations is worth.

    python -m benchmarks.quality [--clips 2] [--frames 8] [--crop 128] [--steps 1 2 4 10 50] [--data ../shared/data/gopro_layout]

Clips are pairs of blurred and sharp frames in a published layout; without a data folder, a moving pattern blurred by averaging. The exact
run is float32. `against exact` is the PSNR between a shortcut's frames and the exact ones of the same number of steps.
"""
from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import common
from benchmarks.shortcuts import cached_features, rounded_to_fp8

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "gopro_layout"
STEPS = (1, 2, 4, 10, 50)
# name -> (context manager over the model, options of the run, fewest and most steps that are of interest), in the device's fastest type
SHORTCUTS: dict[str, tuple[Callable | None, dict, int, int]] = {
    "": (None, {}, 1, 1000),
    "mean of 2 orientations": (None, {"ensemble": 2}, 1, 1),
    "mean of 4 orientations": (None, {"ensemble": 4}, 1, 1),
    "mean of 8 orientations": (None, {"ensemble": 8}, 1, 1),
    "float8 weights": (rounded_to_fp8, {}, 1, 1000),
    "features kept for 2 steps": (lambda model: cached_features(model.unet, 2), {}, 4, 1000),
    "features kept for 3 steps": (lambda model: cached_features(model.unet, 3), {}, 4, 1000),
    "guidance 2": (None, {"guidance": 2.0}, 4, 10),
    "guidance 2 in (0.2, 0.8)": (None, {"guidance": 2.0, "guidance_interval": (0.2, 0.8)}, 4, 10),
}


def pattern(frames: int, size: int, shift: int = 9) -> tuple[Tensor, Tensor]:
    """A pattern that moves sideways by `shift` pixels a frame: (blurred, sharp), each (F, size, size, 3)."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size + shift * (frames + 1)), indexing="ij")
    noise = torch.rand(3, size // 8, x.shape[1] // 8, generator=torch.Generator().manual_seed(0))
    wide = torch.nn.functional.interpolate(noise[None], size=x.shape, mode="bicubic")[0].clamp(0, 1).movedim(0, 2)
    wide[((x // 24 + y // 24) % 3 == 0)] *= 0.4
    sharp = torch.stack([wide[:, shift * i + shift // 2:][:, :size] for i in range(frames)])
    blurred = torch.stack([torch.stack([wide[:, shift * i + k:][:, :size] for k in range(shift)]).mean(0) for i in range(frames)])
    return blurred, sharp


def clips(folder: Path, count: int, frames: int, crop: int) -> tuple[list[tuple[Tensor, Tensor]], str]:
    """[(blurred, sharp)] and where they come from."""
    if folder.is_dir():
        from train.data.readers import find
        from train.evaluate import pairs_of
        pairs = pairs_of(find(folder, "auto", "test"), frames, crop)[:count]
        tensors = [(torch.stack(list(pair.blurred())), torch.stack(list(pair.sharp()))) for pair in pairs]
        return tensors, f"{folder.name}, {len(pairs)} clips"
    return [pattern(frames, crop)], "a moving pattern"


def score(outputs: list[Tensor], found: list[tuple[Tensor, Tensor]], exact: list[Tensor] | None, seconds: float) -> dict:
    """Columns of a row: means over all frames."""
    from vdd_model.measure.metrics import psnr, sharpness
    truth = [sharp for _, sharp in found]
    row = {"PSNR dB": float(torch.cat([psnr(o, t) for o, t in zip(outputs, truth)]).mean()),
           "sharpness": float(torch.cat([sharpness(o) for o in outputs]).mean()), "s": seconds}
    if exact is not None:
        error = torch.cat([(o.double() - e.double()).square().mean((1, 2, 3)) for o, e in zip(outputs, exact)])
        row["against exact dB"] = float(-10 * torch.log10(error.mean().clamp_min(1e-12)))
    return {key: round(value, 3) for key, value in row.items()}


def rows(checkpoint: str, found: list[tuple[Tensor, Tensor]], steps: tuple[int, ...] = STEPS, device: str = "cpu") -> list[dict]:
    """One row per shortcut and number of steps."""
    from vdd_model.inference.pipeline import DeblurOptions, Deblurrer
    table = [{"shortcut": "blurred input", **score([blurred for blurred, _ in found], found, None, 0.0)},
             {"shortcut": "truth", "sharpness": score([sharp for _, sharp in found], found, None, 0.0)["sharpness"]}]
    fast = common.computed_types(device)[-1]
    deblurrers = {name: Deblurrer(checkpoint, device=device, dtype=common.DTYPES[name]) for name in {"float32", fast}}
    exact: dict[int, list[Tensor]] = {}
    named = {(", ".join(part for part in (fast, name) if part)): (fast, *shortcut) for name, shortcut in SHORTCUTS.items()}
    if fast == "float32":
        del named[fast]                                          # it is the exact run
    for name, (dtype, change, options, fewest, most) in {"none": ("float32", None, {}, 1, 1000), **named}.items():
        deblurrer = deblurrers[dtype]
        for count in steps:
            if not fewest <= count <= most:
                continue
            started = time.perf_counter()
            outputs = []
            for blurred, _ in found:
                with change(deblurrer.model) if change else contextlib.nullcontext():
                    outputs.append(deblurrer.deblur(blurred, DeblurOptions(steps=count, **options)))
            seconds = time.perf_counter() - started
            if name == "none":
                exact[count] = outputs
            table.append({"shortcut": name, "steps": count, **score(outputs, found, exact[count] if name != "none" else None, seconds)})
    return table


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=2)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--checkpoint", default="small")
    parser.add_argument("--out", type=Path, default=common.RESULTS)
    arguments = parser.parse_args(argv)
    common.as_command_line()
    found, source = clips(arguments.data, arguments.clips, arguments.frames, arguments.crop)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, what = common.checkpoint_file(folder, arguments.checkpoint)
        table = rows(checkpoint, found, tuple(arguments.steps), arguments.device)
    size = " x ".join(str(n) for n in found[0][0].shape[:3])
    common.write("quality", table, {"checkpoint": what, "clips": f"{source}, each {size}"}, device=arguments.device, folder=arguments.out,
                 notes=["Seconds are of one run, without warm-up: read them as an order of magnitude."])


if __name__ == "__main__":
    main()
