"""LayerNorm of short rows in plain steps: without AMX these take a third to a half of the time of torch's own, and are as exact. On the
processors with AMX torch's takes two thirds of theirs, if it is given weights: without, its loop is a plain one."""
from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from .onednn import in_tiles


@functools.cache
def _weights(channels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """That change nothing."""
    return torch.ones(channels, dtype=dtype), torch.zeros(channels, dtype=dtype)


def normalized(x: Tensor, eps: float, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """LayerNorm over the last axis, with its weights or without."""
    if in_tiles(torch.bfloat16):
        weight, bias = (weight, bias) if weight is not None else _weights(x.shape[-1], x.dtype)
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    wide = x.float()
    mean = wide.sum(-1, keepdim=True).div_(x.shape[-1])
    wide = wide - mean if wide is x else wide.sub_(mean)
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    x = wide.mul_(length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()).to(x.dtype)
    return x if weight is None else torch.addcmul(bias, x, weight)


def scaled(x: Tensor, eps: float) -> Tensor:
    """x (..., C) times what makes its deviation from the mean over C as long as 1; the mean stays in it, for matrices that leave it out."""
    wide, channels = x.float(), x.shape[-1]
    length, total = torch.linalg.vector_norm(wide, dim=-1, keepdim=True), wide.sum(-1, keepdim=True)
    least = channels * eps
    spread = length.square_().add_(least).addcmul_(total, total, value=-1 / channels).clamp_(min=least).rsqrt_()
    return wide * spread if wide is x else wide.mul_(spread).to(x.dtype)
