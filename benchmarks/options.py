"""What every option costs and gives: weights in other types, packed weights, torch.compile, features kept between steps, guidance in an
interval, larger windows. What it does to the frames is in benchmarks/quality.py.

    python -m benchmarks.options [--frames 16] [--size 128 128] [--steps 10] [--device cpu] [--no-compile]
"""
from __future__ import annotations

import contextlib
import copy
import tempfile
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import common
from benchmarks.shortcuts import cached_features, fp8_weights, weight_bytes

WINDOWS = ((16, 4), (24, 4), (32, 4), (16, 8))           # window, overlap


def denoiser_call(model, frames: int, height: int, width: int, device: str) -> Callable[[], Tensor]:
    """One call of the denoiser on fixed inputs, the same for every type."""
    from vdd_model.networks.layers import channels_last
    generator, factor, dtype = torch.Generator().manual_seed(0), model.config.vae.factor, model.null_text.dtype
    if torch.device(device).type == "cuda":                  # as the pipeline does
        channels_last(model.unet)
    shape = (1, model.config.unet.latent_channels, frames, height // factor, width // factor)
    x, blurred = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(2))
    image = torch.randn(1, model.config.unet.image_dim, generator=generator).to(device, dtype)
    concat = model.adapter(blurred)
    context = model.unet.cache_context(model.context(image))
    t = torch.full((1,), 500, device=device)
    return lambda: model.unet(x, t, context, concat)


def against(output: Tensor, exact: Tensor) -> float:
    """Signal-to-noise ratio in dB of the predicted v."""
    exact, output = exact.float().cpu(), output.float().cpu()
    return float(10 * torch.log10(exact.square().mean() / (output - exact).square().mean().clamp_min(1e-20)))


@torch.no_grad()
def weight_rows(checkpoint: str, frames: int, size: tuple[int, int], device: str, repeats: int, compiled: bool) -> list[dict]:
    """One denoiser call with weights of every type, packed and compiled."""
    from vdd_model.checkpoint.store import load
    from vdd_model.cpu import accelerate
    width, height = size
    rows, exact = [], None

    def add(name: str, model, call: Callable[[], Tensor]) -> None:
        nonlocal exact
        output = call()
        exact = output if exact is None else exact
        timing = common.measure(call, repeats, device=device)
        rows.append({"weights": name, **timing.columns(), "against float32": timing.median / rows[0]["s"] if rows else 1.0,
                     "UNet weights MB": weight_bytes(model.unet) / 2**20, "v, dB": "exact" if output is exact else against(output, exact)})

    types = common.computed_types(device)
    fast = types[-1]
    for name in (*types, *(["float16"] if fast != "float32" else [])):
        model = load(checkpoint, device, common.DTYPES[name])
        add(name, model, denoiser_call(model, frames, height, width, device))
        if name == fast:
            with fp8_weights(model.unet):
                add(f"float8 (e4m3) stored, {fast} computed", model, denoiser_call(model, frames, height, width, device))
            if torch.device(device).type == "cpu":
                packed = copy.deepcopy(model)
                size_before = weight_bytes(packed.unet) / 2**20
                accelerate(packed, packed=True)
                add(f"{fast}, packed", packed, denoiser_call(packed, frames, height, width, device))
                rows[-1]["UNet weights MB"] = size_before                  # oneDNN's own layout of the same values
            title = f"{fast}, torch.compile"
            rows.append(compiled_row(title, model, frames, height, width, device, repeats, exact, rows[0]["s"]) if compiled
                        else {"weights": title, "s": common.NOT_MEASURED})
    return rows


def compiled_row(name: str, model, frames: int, height: int, width: int, device: str, repeats: int, exact: Tensor, base: float) -> dict:
    """torch.compile of the whole UNet; "not measured" where there is no compiler."""
    try:
        unet = model.unet
        model.unet.forward, plain = torch.compile(unet.forward), unet.forward
        try:
            call = denoiser_call(model, frames, height, width, device)
            started = time.perf_counter()
            output = call()
            seconds = time.perf_counter() - started
            timing = common.measure(call, repeats, device=device)
        finally:
            unet.forward = plain
            torch._dynamo.reset()
    except Exception as error:                                 # a missing compiler, an operation it does not know: a finding, not a failure
        return {"weights": name, "s": common.NOT_MEASURED, "note": type(error).__name__}
    return {"weights": name, **timing.columns(), "against float32": timing.median / base,
            "UNet weights MB": weight_bytes(model.unet) / 2**20, "v, dB": against(output, exact), "note": f"{seconds:.0f} s to compile"}


@torch.no_grad()
def step_rows(checkpoint: str, frames: int, size: tuple[int, int], steps: int, device: str, repeats: int) -> list[dict]:
    """Sampling with `steps` steps, the latents alone: features kept between steps, guidance always and in an interval."""
    from vdd_model.inference.pipeline import DeblurOptions, Deblurrer, default_dtype
    from vdd_model.inference.window import sample_window
    width, height = size
    model = Deblurrer(checkpoint, device=device, dtype=default_dtype(device)).model
    factor = model.config.vae.factor
    shape = (1, model.config.unet.latent_channels, frames, height // factor, width // factor)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, model.null_text.dtype)
    image = torch.zeros(1, model.config.unet.image_dim, device=device, dtype=model.null_text.dtype)

    def sample(change: Callable = contextlib.nullcontext, **options) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with change():
                return sample_window(model, latents, image, range(frames), DeblurOptions(steps=steps, **options))
        return run

    variants = {"none": sample(), "features kept for 2 steps": sample(lambda: cached_features(model.unet, 2)),
                "features kept for 3 steps": sample(lambda: cached_features(model.unet, 3)), "guidance 2": sample(guidance=2.0),
                "guidance 2 in (0.2, 0.8)": sample(guidance=2.0, guidance_interval=(0.2, 0.8))}
    timings = common.measure_together(variants, repeats, device=device)
    exact = variants["none"]()
    return [{"option": name, "steps": steps, **timings[name].columns(), "against none": timings[name].median / timings["none"].median,
             "x0, dB": "" if name == "none" or "guidance" in name else against(variants[name](), exact)} for name in variants]


@torch.no_grad()
def window_rows(checkpoint: str, size: tuple[int, int], device: str, repeats: int) -> list[dict]:
    """One denoiser call per window, by the frames that each window finishes."""
    from vdd_model.inference.pipeline import DeblurOptions, Deblurrer, default_dtype
    width, height = size
    model = Deblurrer(checkpoint, device=device, dtype=default_dtype(device)).model
    rows = []
    for window, overlap in WINDOWS:
        stride = DeblurOptions(window=window, overlap=overlap).stride
        timing = common.measure(denoiser_call(model, window, height, width, device), repeats, device=device)
        rows.append({"window": window, "overlap": overlap, **timing.columns(), "ms per finished frame": 1000 * timing.median / stride})
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = common.parser(__doc__, size=(128, 128))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--no-compile", action="store_true")
    arguments = parser.parse_args(argv)
    common.as_command_line()
    size, half = tuple(arguments.size), tuple(max(n // 2, 32) // 32 * 32 for n in arguments.size)
    device, repeats = arguments.device, arguments.repeats
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, what = common.checkpoint_file(folder, arguments.checkpoint)
        tables = {
            f"weights: one denoiser call, {arguments.frames} x {size[0]} x {size[1]}":
                weight_rows(checkpoint, arguments.frames, size, device, repeats, not arguments.no_compile),
            f"steps: sampling at {arguments.frames} x {half[0]} x {half[1]}":
                step_rows(checkpoint, arguments.frames, half, arguments.steps, device, repeats),
            f"windows: one denoiser call at {half[0]} x {half[1]}": window_rows(checkpoint, half, device, repeats),
        }
    common.write("options", tables, {"checkpoint": what}, device=device, folder=arguments.out)


if __name__ == "__main__":
    main()
