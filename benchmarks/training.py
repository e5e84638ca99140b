"""What the faster group norm buys in training on a CPU: a step of stage 3 with and without it, in turn, in one process.

    python -m benchmarks.training [--steps 6] [--crop 96] [--frames 3] [--batch 2]

Processor time of forward, backward and the optimiser's step of the shipped model in bfloat16, channels-last, as configs/small_cpu.yaml
trains it; the median over steps, and the ratio of the two.
"""
from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import nn

from train.backend.groupnorm import RowGroupNorm, use_rows
from train.config import StageConfig
from train.stages import StageLoss, set_trainable
from vdd_model.config import preset
from vdd_model.networks.layers import channels_last
from vdd_model.networks.model import DeblurModel


def main() -> None:
    """Print both times and their ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in (("steps", 6), ("crop", 96), ("frames", 3), ("batch", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    a = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = channels_last(DeblurModel(preset("small")).train())
    stage = StageConfig("stage3", steps=1, batch=a.batch, frames=a.frames, crop=a.crop, last_timestep=1.0, denoise=False,
                        trainable=("vae.fidelity.", "encoder2."))
    names = set_trainable(model, stage)
    loss = StageLoss(model, stage)
    optimizer = torch.optim.AdamW([model.get_parameter(name) for name in names], fused=True)
    clips = torch.rand(2, a.batch, 3, a.frames, a.crop, a.crop)
    use_rows(model)
    norms = [module for module in model.modules() if isinstance(module, RowGroupNorm)]
    times: dict[type, list[float]] = {RowGroupNorm: [], nn.GroupNorm: []}
    for step in range(-1, a.steps):                      # the first is a warm-up
        for kind, taken in times.items():
            for norm in norms:
                norm.__class__ = kind
            start = time.process_time()
            with torch.autocast("cpu", torch.bfloat16):
                terms = loss(clips[0], clips[1], list(range(a.batch)))
            terms["loss"].backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if step >= 0:
                taken.append(time.process_time() - start)
    rows, plain = (statistics.median(taken) for taken in times.values())
    print(f"a step of {a.batch} x {a.frames} x {a.crop} x {a.crop}, {len(norms)} norms: {rows:.2f} s with RowGroupNorm, {plain:.2f} s with "
          f"torch's, ratio {rows / plain:.3f}")


if __name__ == "__main__":
    main()
