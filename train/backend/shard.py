"""FSDP (`fsdp: true`): parameters, gradients, averages and moments spread over the processes; states on disk stay whole.

torch's `fully_shard` on the large blocks of the UNet and on the stage as the root.
"""
from __future__ import annotations

import torch
from torch import nn


def shard(module: nn.Module, device: torch.device) -> None:
    """Spread a StageLoss over all processes, in place: its parameters become DTensors."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from vdd_model.networks import layers

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    # Inside first. A spatial transformer stays with the root, but for its feed-forward: its keys are made outside its forward.
    for block in reversed(list(module.model.unet.modules())):
        if isinstance(block, (layers.ResBlock, layers.FeedForward, layers.TemporalTransformer)):
            fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)
