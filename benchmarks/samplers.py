"""What ComfyUI's samplers and schedulers make of the shipped model: PSNR of a clip against the truth.

    cd ComfyUI && python REPOSITORY/benchmarks/samplers.py [--photo FILE] [--steps 4 20] [--full]

Run by the host's interpreter in the host's folder. Every sampler with the scheduler `simple`, every scheduler with the sampler `euler`
(--full: all pairs), then `denoise` below 1. One clip, filmed of a photograph by a shaking camera, decoded as the node does by itself.
"""
from __future__ import annotations

import argparse
import asyncio
import importlib.util
import math
import os
import sys
from pathlib import Path

FRAMES, SIDE, BLUR = 4, 96, 6.0


def load_nodes(root: Path) -> dict:
    """The pack's nodes by id, as the host loads them."""
    spec = importlib.util.spec_from_file_location("pack", root / "__init__.py", submodule_search_locations=[str(root)])
    module = sys.modules["pack"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    nodes = asyncio.run(asyncio.run(module.comfy_entrypoint()).get_node_list())
    return {node.GET_SCHEMA().node_id: node for node in nodes}


def photograph(path: str | None):
    """(1, SIDE, SIDE, 3) in [0, 1]."""
    import numpy as np
    import torch
    from PIL import Image
    if path:
        picture = Image.open(path).convert("RGB")
    else:
        from skimage.data import astronaut
        picture = Image.fromarray(astronaut()[:400, 40:440])
    return torch.from_numpy(np.asarray(picture.resize((SIDE, SIDE), Image.LANCZOS), dtype=np.float32) / 255)[None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--photo", help="a sharp picture; default: scikit-image's astronaut")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 20])
    parser.add_argument("--full", action="store_true", help="every sampler with every scheduler")
    given = parser.parse_args()
    sys.argv = [sys.argv[0], "--cpu"]
    sys.path.insert(0, os.getcwd())
    import comfy.options
    comfy.options.enable_args_parsing()
    import comfy.sample
    import comfy.samplers
    import torch
    torch.set_num_threads(1)

    nodes = load_nodes(Path(__file__).resolve().parents[1])
    with torch.inference_mode():
        blurred, sharp = nodes["VDDSynthesizeBlur"].execute(photograph(given.photo), FRAMES, BLUR, 3).result
        model, vae, encoders = nodes["VDDLoadCheckpoint"].execute("vdd-small (built in)", "auto").result[:3]
        positive, negative, latent = nodes["VDDEncodeClip"].execute(blurred, encoders, vae).result[:3]
        noise = comfy.sample.prepare_noise(latent["samples"], 0)

        def score(samples) -> str:
            frames = nodes["VDDDecode"].execute({**latent, "samples": samples}, vae, blurred).result[0]
            return f"{-10 * math.log10((frames - sharp).square().mean()):.2f}"

        def run(sampler: str, scheduler: str, steps: int, **more) -> str:
            """PSNR in dB, or what happened instead."""
            try:
                return score(comfy.sample.sample(model, noise, steps, 1.0, sampler, scheduler, positive, negative, latent["samples"],
                                                 seed=0, disable_pbar=True, **more))
            except Exception as error:
                return "not numbers" if "not numbers" in str(error) else type(error).__name__

        plain = -10 * math.log10((blurred - sharp).square().mean())

        def ours(steps: int) -> str:
            return score(nodes["VDDSampler"].execute(model, positive, negative, latent, 0, steps, 1.0, 0.0).result[0]["samples"])

        print(f"blurred frames {plain:.2f} dB, their own latents decoded {score(latent['samples'])} dB, Deblur Sampler " +
              ", ".join(f"{steps} steps {ours(steps)}" for steps in (1, *given.steps)) + " dB\n")
        print("| sampler | scheduler | " + " | ".join(f"{steps} steps, dB" for steps in given.steps) + " |\n| --- | --- |" +
              " ---: |" * len(given.steps), flush=True)
        samplers, schedulers = comfy.samplers.SAMPLER_NAMES, comfy.samplers.SCHEDULER_NAMES
        pairs = [(a, b) for a in samplers for b in schedulers if given.full or b == "simple" or a == "euler"]
        for sampler, scheduler in pairs:
            print(f"| {sampler} | {scheduler} | " + " | ".join(run(sampler, scheduler, steps) for steps in given.steps) + " |", flush=True)
        for denoise in (0.75, 0.5, 0.25):
            print(f"| euler, denoise {denoise} | simple | " + " | ".join(run("euler", "simple", steps, denoise=denoise)
                                                                      for steps in given.steps) + " |", flush=True)


if __name__ == "__main__":
    main()
