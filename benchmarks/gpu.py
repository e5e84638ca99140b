"""`make gpu`: one GPU tried in under 8 minutes: does it compute what the CPU does, how fast, in how much memory.

    python -m benchmarks.gpu [--device cuda] [--minutes 8] [--out FOLDER]

The networks and the pipeline against float32 on the CPU; `small` at 720p with and without the pretrained prior; one `tft2v` call; a
training step of every stage. With `--device cpu` everything that can runs, on the smallest of everything, and the rest is "not
measured", as is what no longer fits into the minutes. All goes into gpu.json and gpu.md (gpu-cuda.*).
"""
from __future__ import annotations

import argparse
import contextlib
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import common, unet
from train.config import LossConfig, StageConfig
from train.stages import StageLoss, set_trainable
from vdd_model.config import UNetConfig
from vdd_model.errors import UserError
from vdd_model.inference.pipeline import DeblurOptions, Deblurrer
from vdd_model.inference.windows import first_input_frame
from vdd_model.networks.fidelity import BlurGuide
from vdd_model.networks.model import DeblurModel

HERE = Path(__file__).resolve().parents[1]
TESTS = ("tests/vdd_model/networks", "tests/vdd_model/diffusion", "tests/vdd_model/inference", "tests/train/test_cuda.py")
LEAST = {"float32": 60.0, "bfloat16": 25.0}        # dB of signal to difference from float32 on the CPU
STAGES = ("autoencoder", "denoiser", "stage1", "stage2", "stage3")
CALL = (16, 1280, 768)                             # frames, width, height of the `tft2v` call


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """No TF32 meanwhile: float32 is compared."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def decibel(found: torch.Tensor, true: torch.Tensor) -> float:
    """Power of `true` against that of its difference from `found`."""
    true = true.double()
    error = (found.double().cpu() - true).square().mean() / true.square().mean()
    return -10 * math.log10(error) if error else math.inf


def row(what: str, value: float, least: float, unit: str = "dB") -> dict:
    """One check."""
    return {"check": what, "found": value, "unit": unit, "at least": least, "met": "yes" if value >= least else "no"}


def clip(frames: int, height: int, width: int) -> torch.Tensor:
    """A moving pattern (F, H, W, 3) in [0, 1]."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.stack([torch.sin((x + 2 * i) / 9), torch.sin((y + i) / 7), torch.sin((x + y - 3 * i) / 11)], dim=-1)
                        for i in range(frames)]).mul_(0.45).add_(0.5)


def network_checks(checkpoint: str, device: str) -> list[dict]:
    """Every network in every type against float32 on the CPU."""
    found = []
    frames = clip(4, 64, 96).permute(3, 0, 1, 2)[None] * 2 - 1
    exact = Deblurrer(checkpoint, device="cpu", dtype=torch.float32).model

    def outputs(model: DeblurModel) -> dict[str, torch.Tensor]:
        """What the networks make of the clip, in float32 on the CPU."""
        like = model.null_text
        pixels = frames.to(like.device)
        code = model.encode_blurred(pixels)
        condition = model.condition(code.latents, pixels[:, :, 2])
        noise = torch.randn(code.latents.shape, generator=torch.Generator().manual_seed(0)).to(like)
        v = model.predict_v(noise, torch.tensor([500], device=like.device), condition)
        made = {"encoder 2": code.latents, "semantic vector": condition.image, "adapter": condition.concat, "UNet": v,
                "decoder": model.decode(code.latents),
                "decoder with the frames": model.decode(code.latents, BlurGuide(pixels, code.features))}
        return {name: value.float().cpu() for name, value in made.items()}

    with torch.no_grad(), exact_products():
        true = outputs(exact)
        for dtype in common.computed_types(device):
            ours = outputs(Deblurrer(checkpoint, device=device, dtype=common.DTYPES[dtype]).model)
            found += [row(f"{name}, {dtype}", decibel(ours[name], value), LEAST[dtype]) for name, value in true.items()]
    return found


def pipeline_checks(checkpoint: str, device: str) -> list[dict]:
    """A clip deblurred on the device: against the CPU, in tiles, in several steps, gone on with."""
    found, frames = [], clip(12, 96, 128)
    few = DeblurOptions(window=6, overlap=2, prior="none", temporal_fusion="on")         # what "auto" takes depends on the device
    several = replace(few, temporal_fusion="off", steps=4, guidance=2.0)
    with exact_products():
        exact = Deblurrer(checkpoint, device="cpu", dtype=torch.float32)
        true = exact.deblur(frames, few)
        sampled = exact.deblur(frames[:6], several)
        for dtype in common.computed_types(device):
            ours = Deblurrer(checkpoint, device=device, dtype=common.DTYPES[dtype])
            whole = ours.deblur(frames, few)
            found.append(row(f"one step, {dtype}", decibel(whole, true), LEAST[dtype]))
            found.append(row(f"4 steps with guidance, {dtype}", decibel(ours.deblur(frames[:6], several), sampled),
                             LEAST[dtype] - 10))
            found.append(row(f"tiles, {dtype}", decibel(ours.deblur(frames, few, tile=64, tile_overlap=32), true), 25.0))
            start = first_input_frame(7, few)
            later = torch.cat(list(ours.stream(frames[start:], few, first_frame=7, input_start=start)))
            found.append(row(f"gone on with from frame 7, {dtype}", float(torch.equal(later, whole[7:])), 1.0, "equal"))
    return found


def tests(device: str, seconds: float) -> list[dict]:
    """The repository's own tests of networks, schedules, pipeline and of the code for GPUs, with this machine's PyTorch."""
    if device == "cpu":
        return [{"check": "tests of networks and pipeline", "found": common.NOT_MEASURED, "unit": "see make test"}]
    try:
        done = subprocess.run([sys.executable, "-m", "pytest", "-x", "-q", *TESTS], cwd=HERE, timeout=seconds, stdout=subprocess.PIPE,
                              text=True)
    except subprocess.TimeoutExpired:
        return [{"check": "tests of networks and pipeline", "found": common.NOT_MEASURED, "unit": f"not done in {seconds:.0f} s"}]
    return [row("tests of networks and pipeline", float(done.returncode == 0), 1.0, (done.stdout.strip().splitlines() or ["passed"])[-1])]


def peak(device: str) -> Callable[[], dict]:
    """Call it now; what it gives, called later, is the most memory in between (GPU) or so far (CPU)."""
    if device == "cpu":
        import resource
        unit = 2**20 if sys.platform == "darwin" else 2**10
        return lambda: {"peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}
    torch.cuda.reset_peak_memory_stats()
    return lambda: {"peak MB": torch.cuda.max_memory_allocated() / 2**20}


def speed(checkpoint: str, device: str) -> list[dict]:
    """`small` in one step, frames in memory to frames in memory: alone, joined over time, and with the prior, joined too."""
    frames, (width, height) = (48, (1280, 720)) if device != "cpu" else (4, (256, 144))
    found, source = [], clip(frames, height, width)
    for prior, joined in (("none", "off"), ("none", "on"), ("maxim", "on")):
        about = {"prior": prior, "fusion over time": joined, "clip": f"{frames} x {width} x {height}",
                 "type": common.computed_types(device)[-1]}
        try:
            deblurrer = Deblurrer(checkpoint, device=device, dtype=common.DTYPES[about["type"]])
            options, notices = DeblurOptions(prior=prior, temporal_fusion=joined), []
            deblurrer.deblur(source[:8] if device != "cpu" else source[:1], options, notice=notices.append)
            if prior != "none" and notices:
                raise UserError(notices[0])
            measured = peak(device)
            timing = common.measure(lambda: deblurrer.deblur(source, options), 1, 0, device)  # noqa: B023 (called here)
            found.append({**about, "frames/s": frames / timing.median, **measured()})
        except Exception as error:                             # no prior at hand, or no room: the other rows count
            found.append({**about, "frames/s": common.NOT_MEASURED, "why": str(error)})
    return found


def call(device: str) -> list[dict]:
    """One call of the full-size UNet in bfloat16."""
    frames, width, height = CALL
    about = {"call": f"tft2v, {frames} x {width} x {height}", "type": "bfloat16"}
    if device == "cpu":
        return [{**about, "s": common.NOT_MEASURED}]
    config = UNetConfig()
    case = {"frames": frames, "height": height // 8, "width": width // 8, "dtype": "bfloat16", "device": device, "processor_time": False}
    measured = peak(device)
    ours = unet.Ours(config, case, "plain")
    timing = common.Timing(tuple(ours.seconds() for _ in range(3)))
    flops = ours.about["flops"]
    return [{**about, "TFLOP": flops / 1e12, **timing.columns(), **common.of_ceiling(flops, timing.median, "bfloat16", device),
             **measured()}]


def training(device: str) -> list[dict]:
    """Seconds of a training step of `small`, forward and back, in every stage."""
    batch, frames, crop = (8, 8, 256) if device != "cpu" else (1, 2, 32)
    found = []
    for kind in STAGES:
        common.release()
        model = common.random_model("small").train().to(device)
        stage = StageConfig(kind=kind, steps=1, batch=batch, loss=LossConfig())
        set_trainable(model, stage)
        loss = StageLoss(model, stage)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
        blurred, sharp = torch.rand(2, batch, 3, 1 if kind == "autoencoder" else frames, crop, crop, device=device)

        def step() -> None:
            with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
                value = loss(blurred, sharp, range(batch))["loss"]  # noqa: B023 (called here)
            value.backward()
            optimizer.step()  # noqa: B023
            optimizer.zero_grad()  # noqa: B023
        measured = peak(device)
        timing = common.measure(step, 3 if device != "cpu" else 1, 1, device)
        found.append({"stage": kind, "batch": f"{batch} x {blurred.shape[2]} x {crop} x {crop}", **timing.columns(), **measured()})
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--checkpoint", default="small")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--out", type=Path, default=common.RESULTS)
    arguments = parser.parse_args(argv)
    device, until = arguments.device, time.monotonic() + 60 * arguments.minutes
    if device == "cuda" and not torch.cuda.is_available():
        print("there is no GPU that this PyTorch can use: --device cpu runs what can run without one", file=sys.stderr)
        return 1
    parts: dict[str, Callable[[], list[dict]]] = {
        "networks against float32 on the CPU": lambda: network_checks(arguments.checkpoint, device),
        "pipeline": lambda: pipeline_checks(arguments.checkpoint, device),
        "small": lambda: speed(arguments.checkpoint, device),
        "tft2v": lambda: call(device),
        "a training step": lambda: training(device),
        "tests": lambda: tests(device, max(1.0, until - time.monotonic())),
    }
    found, took = {}, {}
    for title, part in parts.items():
        started = time.monotonic()
        if started > until:
            found[title] = [{"what": title, "found": common.NOT_MEASURED, "why": f"the {arguments.minutes:g} minutes were over"}]
            continue
        try:
            found[title] = part()
        except Exception as error:                             # one part that fails is what this is for: the others still count
            found[title] = [{"what": title, "found": "failed", "why": f"{type(error).__name__}: {error}"}]
        took[title] = round(time.monotonic() - started, 1)
        print(f"== {title}: {took[title]} s", file=sys.stderr, flush=True)
        common.release()
    common.write("gpu", found, {"seconds": took}, device=device, folder=arguments.out)
    return 1 if any(row.get("met") == "no" or row.get("found") == "failed" for rows in found.values() for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
