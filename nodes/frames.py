"""The host's IMAGE: (F, H, W, 3 or 4) in [0, 1]."""
from __future__ import annotations

import torch
from torch import Tensor


def rgb_of(frames: Tensor) -> Tensor:
    """(F, H, W, C) -> (F, H, W, 3) float32; alpha is left out, a single grey channel is repeated."""
    rgb = frames[..., :3] if frames.shape[-1] >= 3 else frames[..., :1].expand(*frames.shape[:-1], 3)
    return rgb.float()


def with_alpha(frames: Tensor, source: Tensor) -> Tensor:
    """`frames` (F, H, W, 3) with the alpha of `source` (F, H, W, 4), where it has one."""
    return torch.cat([frames, source[..., 3:].to(frames)], dim=-1) if source.shape[-1] == 4 else frames
