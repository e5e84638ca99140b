"""FSDP (`fsdp: true`): parameters, gradients, averages and moments spread over the processes; states on disk stay whole.

torch's `fully_shard` on the large blocks of the UNet and on the stage as the root.
"""
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


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


def whole(value: Tensor) -> Tensor:
    """A tensor from all its parts. All processes must call it."""
    return value.detach().full_tensor() if isinstance(value, DTensor) else value.detach()


def part(value: Tensor) -> Tensor:
    """This process's part of a tensor, in place."""
    return value.detach().to_local() if isinstance(value, DTensor) else value.detach()


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """A copy of a whole `value`, on the device of a parameter of its shape, spread as that one is or in its memory format."""
    if isinstance(parameter, DTensor):
        return distribute_tensor(value.to(parameter.device, copy=True), parameter.device_mesh, parameter.placements)
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
