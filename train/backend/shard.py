"""FSDP (`fsdp: true`): parameters, gradients, averages and moments spread over the processes; states on disk stay whole.

torch's `fully_shard` on the large blocks of the UNet and on the stage as the root. The functions below are the identity for a plain tensor,
so that the loop needs no second path.
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


def local(tensor: Tensor) -> Tensor:
    """This process's part, sharing memory with `tensor`."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(part: Tensor, like: Tensor) -> Tensor:
    """The whole tensor of which every process gives its `part`, laid out as the parameter `like` is. All processes must call it."""
    if not isinstance(like, DTensor):
        return part
    return DTensor.from_local(part, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()).full_tensor()


def part_of(value: Tensor, like: Tensor) -> Tensor:
    """This process's part of the whole tensor `value`, as the parameter `like` is laid out."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements).to_local()


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's state dict, whole."""
    return {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in model.state_dict().items()}
