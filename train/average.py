"""One checkpoint out of several of the same model: the mean of their weights.

    python -m train.average A.safetensors B.safetensors ... -o MEAN.safetensors [--weights 1 2 ...] [--only vae.fidelity. ...]

For runs that went on from one another, or from one start: they end in the same valley of the loss, each somewhere on its walls, and their
mean lies nearer to its floor (Izmailov et al. 2018, stochastic weight averaging; Wortsman et al. 2022, model soups). Averages of models
that were trained apart are worthless. Measure before use (`python -m train.evaluate`, `make score`).
"""
from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vdd_model.checkpoint import store as checkpoint
from vdd_model.config import ModelConfig
from vdd_model.errors import UserError

from . import command
from .start import model_differences


@torch.no_grad()
def average(paths: Sequence[str | Path], weights: Sequence[float] | None = None,
            only: Sequence[str] = ("",)) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The configuration of the first checkpoint and the weighted mean of all their tensors, summed in float32, in the first one's types.

    weights: one positive number for each path, equal ones by default; their sum does not matter. only: prefixes of the tensors' names
    that are averaged; the others are the first one's. Raises UserError for checkpoints of different models, for fewer than two, for
    weights that do not fit, for a prefix that no name has, and where tensors that go by the latents' scale meet another scale.
    """
    weights = [1.0] * len(paths) if weights is None else list(weights)
    if len(paths) < 2 or len(weights) != len(paths) or not 0 < min(weights) <= max(weights) < math.inf:
        raise UserError(f"an average needs two or more checkpoints and a positive weight for each: {len(paths)} and "
                        f"{' '.join(f'{w:g}' for w in weights) or 'none'} were given")
    total = sum(weights)
    first, state = checkpoint.read_state(paths[0])
    for prefix in only:
        if not any(name.startswith(prefix) for name in state):
            raise UserError(f"no tensor's name in {paths[0]} starts with {prefix!r}")
    mean = {name: tensor.float() * (weights[0] / total) for name, tensor in state.items()
            if tensor.is_floating_point() and name.startswith(tuple(only))}
    scaled = any(name.startswith(("unet.", "adapter.")) or "quant_conv." in name for name in mean)
    for path, weight in zip(paths[1:], weights[1:]):
        config, other = checkpoint.read_state(path)
        different = model_differences(first, config)
        if not different and scaled and config.vae.latent_scale != first.vae.latent_scale:
            different = f"vae.latent_scale is {first.vae.latent_scale:g} against {config.vae.latent_scale:g}"
        if different:
            raise UserError(f"{path} holds another model than {paths[0]}: {different}")
        for name, tensor in mean.items():
            tensor.add_(other[name].float(), alpha=weight / total)
    return first, {name: mean[name].to(tensor.dtype) if name in mean else tensor for name, tensor in state.items()}


@command(2)
def main(arguments: list[str] | None = None) -> None:
    """`python -m train.average`. Raises UserError."""
    parser = argparse.ArgumentParser(prog="python -m train.average", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", help="files, or `small` for the shipped weights")
    parser.add_argument("-o", "--out", required=True, type=Path)
    parser.add_argument("--weights", nargs="+", type=float, help="one for each checkpoint (equal)")
    parser.add_argument("--only", nargs="+", default=[""], metavar="PREFIX",
                        help="average only what is called so, such as vae.fidelity.; the rest is the first's")
    options = parser.parse_args(arguments)
    config, state = average(options.checkpoints, options.weights, options.only)
    names = [Path(path).name for path in options.checkpoints]
    record = {**checkpoint.read_training(options.checkpoints[0]), "average_of": names}
    if options.weights:
        record["average_weights"] = options.weights
    if any(options.only):
        record["average_only"] = options.only
    checkpoint.save_state(state, config, options.out, training=record)
    print(f"wrote {options.out}, the mean of {', '.join(names)}")


if __name__ == "__main__":
    sys.exit(main())
