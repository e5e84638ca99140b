"""Peak memory of loading a full-size checkpoint, and of building one from full-size official files.

    python -m benchmarks.loading [--preset tft2v] [--dtype float16] [--convert] [--folder FOLDER]

The files hold zeros, but every tensor of the real ones (about 5 GB in float16; with --convert 5 GB more). Each step runs in a fresh
process, whose peak resident set size the system reports when it ends; the peak of a process that only imports the same modules is
printed beside it. `load` touches every tensor, so that mapped memory counts.
"""
from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from benchmarks.memory import run
from vdd_model.checkpoint.store import load, save_state
from vdd_model.config import preset
from vdd_model.media.files import in_bytes
from vdd_model.networks.model import DeblurModel

TEXT_TOWER = {"width": 1024, "layers": 24, "words": 49408, "positions": 77}        # OpenCLIP ViT-H/14


def state_of(name: str) -> dict[str, torch.Tensor]:
    """Zeros in the shape of every tensor of a preset's model, without their memory."""
    with torch.device("meta"):
        model = DeblurModel(preset(name))
    return {key: torch.zeros(()).expand(value.shape) for key, value in model.state_dict().items()}


def write_official(folder: Path, name: str, dtype: torch.dtype) -> list[Path]:
    """Files in the layout of TF-T2V, Stable Diffusion and OpenCLIP, with zeros."""
    state = state_of(name)

    def part(prefix: str, new: str = "", ours: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
        return {new + k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix) and not k.startswith(ours or ("-",))}

    contents: Mapping[str, dict] = {
        "tft2v.pth": part("unet."), "sd.ckpt": part("vae.", "first_stage_model.", ("vae.fidelity.",)),
        "clip.bin": part("encoder1.semantic_head.", "visual.") | text_tower()}
    paths = []
    for file, tensors in contents.items():
        tensors = {k: torch.zeros(v.shape, dtype=dtype) for k, v in tensors.items()}
        torch.save({"state_dict": tensors}, folder / file)
        paths.append(folder / file)
    return paths


def text_tower() -> dict[str, torch.Tensor]:
    """The keys of OpenCLIP's text tower."""
    w = TEXT_TOWER["width"]
    shapes = {"token_embedding.weight": (TEXT_TOWER["words"], w), "positional_embedding": (TEXT_TOWER["positions"], w),
              "ln_final.weight": (w,), "ln_final.bias": (w,)}
    for i in range(TEXT_TOWER["layers"]):
        block = f"transformer.resblocks.{i}."
        shapes |= {block + k: s for k, s in {
            "ln_1.weight": (w,), "ln_1.bias": (w,), "ln_2.weight": (w,), "ln_2.bias": (w,), "attn.in_proj_weight": (3 * w, w),
            "attn.in_proj_bias": (3 * w,), "attn.out_proj.weight": (w, w), "attn.out_proj.bias": (w,), "mlp.c_fc.weight": (4 * w, w),
            "mlp.c_fc.bias": (4 * w,), "mlp.c_proj.weight": (w, 4 * w), "mlp.c_proj.bias": (w,)}.items()}
    return {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}


def step(name: str, folder: Path, model: str, dtype: torch.dtype) -> None:
    """One measured step; runs in a process of its own."""
    path = folder / "full.safetensors"
    if name == "write":
        save_state(state_of(model), preset(model), path, dtype=dtype)
    elif name == "load":
        loaded = load(path)
        touched = sum(float(p.detach().sum()) for p in loaded.parameters())
        print(f"  {sum(p.numel() for p in loaded.parameters()):,} parameters, sum {touched:.0f}", flush=True)
    elif name == "official":
        write_official(folder, model, dtype)
    elif name == "convert":
        from vdd_model.checkpoint.convert import convert
        files = [folder / name for name in ("tft2v.pth", "sd.ckpt", "clip.bin")]
        convert(files, folder / "converted.safetensors", config=preset(model), dtype=dtype)


def main() -> None:
    """Print peaks beside file sizes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loading", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", default="tft2v")
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--convert", action="store_true")
    parser.add_argument("--folder", default=None, help="where the files are written (default: a temporary folder)")
    parser.add_argument("--step", default="", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.step:
        step(a.step, Path(a.folder), a.preset, getattr(torch, a.dtype))
        return
    with tempfile.TemporaryDirectory(dir=a.folder) as folder:
        for name in ("nothing", "write", "load", *(("official", "convert") if a.convert else ())):
            peak, seconds, _ = run([sys.executable, "-m", "benchmarks.loading", "--step", name, "--folder", folder, "--preset", a.preset,
                                 "--dtype", a.dtype])
            made = Path(folder) / ("converted.safetensors" if name == "convert" else "full.safetensors")
            size = made.stat().st_size / 2**20 if made.exists() else 0
            ratio = f", {peak / size:.2f} x the file ({in_bytes(made.stat().st_size)})" if size else ""
            print(f"{name:<10} peak {peak:9.1f} MiB, {seconds:6.1f} s{ratio}", flush=True)


if __name__ == "__main__":
    main()
