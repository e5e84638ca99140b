"""Encoder and decoder of `small` on one window, and what the fidelity branch adds.

    python -m benchmarks.autoencoder [--frames 16] [--size 256 256] [--device cpu] [--checkpoint small]
"""
from __future__ import annotations

import tempfile

import torch

from benchmarks import common


def cases(model, frames: int, height: int, width: int, dtype: torch.dtype, device: str) -> dict:
    """What is measured: name -> function. Frames go through in the pipeline's own chunks."""
    from vdd_model.inference.tiles import Tiling
    from vdd_model.networks.fidelity import BlurGuide
    chunk = Tiling().chunk(height, width)
    pixels = torch.rand(1, 3, frames, height, width, device=device).mul_(2).sub_(1)
    parts = pixels.split(chunk, dim=2)
    codes = [model.encode_blurred(part) for part in parts]
    guides = [BlurGuide(part, code.features) for part, code in zip(parts, codes)]
    latents = torch.cat([code.latents for code in codes], dim=2)
    z = torch.randn(latents.shape, device=device).to(dtype).split(chunk, dim=2)
    return {
        "encoder 2, with features": lambda: [model.encode_blurred(part) for part in parts],
        "adapter": lambda: model.adapter(latents),
        "decoder, plain": lambda: [model.decode(part) for part in z],
        "decoder, fidelity branch": lambda: [model.decode(*each) for each in zip(z, guides)],
    }


@torch.no_grad()
def rows(checkpoint: str, frames: int = 16, size: tuple[int, int] = (256, 256), device: str = "cpu",
         repeats: int = common.REPEATS) -> tuple[list[dict], list[str]]:
    """One row per part and type; sentences on the fidelity branch's share."""
    from vdd_model.checkpoint.store import load
    width, height = size
    found, notes = [], []
    for name in common.computed_types(device):
        model = load(checkpoint, device, common.DTYPES[name])
        functions = cases(model, frames, height, width, common.DTYPES[name], device)
        timings = common.measure_together(functions, repeats, device=device)
        for part, function in functions.items():
            flops, timing = common.count_flops(function), timings[part]
            found.append({"part": part, "frames": f"{frames} x {width} x {height}", "type": name, **timing.columns(),
                          "GFLOP": flops / 1e9, **common.of_ceiling(flops, timing.median, name, device)})
        plain, whole = timings["decoder, plain"].median, timings["decoder, fidelity branch"].median
        notes.append(f"{name}: the fidelity branch is {100 * (whole - plain) / whole:.0f} % of the decoder's {whole:.2f} s.")
    return found, notes


def main(argv: list[str] | None = None) -> None:
    arguments = common.parser(__doc__).parse_args(argv)
    common.as_command_line()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, what = common.checkpoint_file(folder, arguments.checkpoint)
        found, notes = rows(checkpoint, arguments.frames, tuple(arguments.size), device=arguments.device, repeats=arguments.repeats)
    common.write("autoencoder", {"autoencoder": found, "ceilings": common.ceilings_table(arguments.device)}, {"checkpoint": what},
                 device=arguments.device, notes=notes, folder=arguments.out)


if __name__ == "__main__":
    main()
