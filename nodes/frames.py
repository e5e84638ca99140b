"""The host's IMAGE: (F, H, W, 3 or 4) in [0, 1]."""
from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..vdd_model.errors import UserError


def rgb_of(frames: Tensor) -> Tensor:
    """(F, H, W, C) -> (F, H, W, 3) float32; alpha is left out, a single grey channel is repeated."""
    rgb = frames[..., :3] if frames.shape[-1] >= 3 else frames[..., :1].expand(*frames.shape[:-1], 3)
    return rgb.float()


def checked(frames: Tensor) -> Iterator[Tensor]:
    """The `rgb_of` frames one after another. Raises UserError for the first with NaN or infinite values, naming it."""
    for index, frame in enumerate(rgb_of(frames)):
        if not torch.isfinite(frame).all():
            raise UserError(f"frame {index} holds NaN or infinite values; replace it or cut it out")
        yield frame


def with_alpha(frames: Tensor, source: Tensor) -> Tensor:
    """`frames` (F, H, W, 3) with the alpha of `source` (F, H, W, 4), where it has one."""
    return torch.cat([frames, source[..., 3:].to(frames)], dim=-1) if source.shape[-1] == 4 else frames
