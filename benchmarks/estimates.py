"""How near to the truth several steps start: the adapter's estimate of the sharp latents, and what the picture of one step adds to it.

    python -m benchmarks.estimates [--data FOLDER] [--frames 5]

Mean squared errors against encoder 1's latents of the truth, for the middle frames of every clip of `make score`, float32, prior off (with
it the picture errs less). The last column is what `LOG_STD_OF_BOTH` in vdd_model/networks/adapter.py stands for: how much less the mean of
both estimates errs.
"""
from __future__ import annotations

import math
from itertools import islice
from pathlib import Path

import torch

from benchmarks import common
from benchmarks.score import clips_of
from train import exit_code
from vdd_model.checkpoint.store import load
from vdd_model.inference.codes import Codes
from vdd_model.inference.window import encode_pictures, to_pixels


@torch.no_grad()
def errors(model, blurred: list[torch.Tensor], sharp: list[torch.Tensor]) -> list[float]:
    """Mean squared errors of the adapter's estimate, of the picture's latents, and of the mean of both; frames (H, W, 3) in [0, 1]."""
    pixels, truth = (to_pixels(frames, model.config.divisor, torch.device("cpu")) for frames in (blurred, sharp))
    code, target = model.encode_blurred(pixels), model.encode_target(truth)
    frames = range(len(blurred))
    codes = Codes(model, lambda numbers, tile: tile.of(pixels[:, :, numbers.start:numbers.stop]), None, pixels.shape[-2:])
    picture = encode_pictures(model, codes.source(code.latents, frames, frames), pixels.shape[2:])
    channels = code.latents.shape[1]
    both = torch.cat([code.latents, picture], dim=1)
    estimates = (model.adapter(code.latents)[:, :channels], picture, model.adapter(both)[:, :channels])
    return [(x - target).square().mean().item() for x in estimates]


def rows(data: Path, frames: int) -> list[dict]:
    """One row a set."""
    model = load("small", torch.device("cpu"), torch.float32).eval()
    sets = clips_of(data)
    found = []
    for name, pairs in sets.items():
        found_here = []
        for pair in pairs:
            first = max(0, (pair.num_frames - frames) // 2)
            found_here.append(errors(model, *(list(islice(f(), first, first + frames)) for f in (pair.blurred, pair.sharp))))
        alone, picture, both = (sum(column) / len(column) for column in zip(*found_here))
        found.append({"set": name, "clips": len(pairs), "adapter's estimate": alone, "picture's latents": picture, "mean of both": both,
                      "ratio": both / alone, "its root": math.sqrt(both / alone)})
    return found


def main(argv: list[str] | None = None) -> int:
    parser = common.data_parser(__doc__)
    parser.add_argument("--frames", type=int, default=5, help="middle frames of every clip (%(default)s)")
    a = parser.parse_args(argv)
    return exit_code(lambda: common.write("estimates", rows(a.data, a.frames), {"frames": a.frames}, folder=a.out))


if __name__ == "__main__":
    raise SystemExit(main())
