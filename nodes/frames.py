"""The host's IMAGE: (F, H, W, 3 or 4) in [0, 1]."""
from __future__ import annotations

import torch
from torch import Tensor

from ..vdd_model.errors import UserError


def rgb_of(frames: Tensor) -> Tensor:
    """(F, H, W, C) -> (F, H, W, 3) float32; alpha is left out, a single grey channel is repeated. Raises UserError."""
    if frames.ndim != 4 or not frames.numel() or not frames.is_floating_point():
        raise UserError("expected frames (F, H, W, 3), at least one, floating point in [0, 1], found a tensor of shape "
                        f"{tuple(frames.shape)} and type {str(frames.dtype).removeprefix('torch.')}")
    rgb = frames[..., :3] if frames.shape[-1] >= 3 else frames[..., :1].expand(*frames.shape[:-1], 3)
    return rgb.float()


def need_prior_of(frames: Tensor, prior: Tensor | None, name: str) -> None:
    """Raise UserError where the prior's frames are not those of `frames`, the input called `name`."""
    if prior is not None and prior.shape[:3] != frames.shape[:3]:
        (count, height, width), (others, rows, columns) = prior.shape[:3], frames.shape[:3]
        raise UserError(f"prior has {count} frames of {width} x {height} pixels, {name} {others} of {columns} x {rows}: "
                        "give Deblur Prior the same frames")


def with_alpha(frames: Tensor, source: Tensor) -> Tensor:
    """`frames` (F, H, W, 3) with the alpha of `source` (F, H, W, 4), where it has one."""
    return torch.cat([frames, source[..., 3:].to(frames)], dim=-1) if source.shape[-1] == 4 else frames
