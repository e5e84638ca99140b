"""Encoder 2's latents -> the UNet's concat channels: convolutions and one temporal transformer (paper 4.2)."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import AdapterConfig
from .attention import attention


class TemporalTransformer(nn.Module):
    """Self-attention over the frames of every position, then a feed-forward; pre-norm, no positional encoding."""

    def __init__(self, channels: int, heads: int, ops):
        super().__init__()
        self.heads = heads
        self.norm1 = ops.LayerNorm(channels)
        self.to_qkv = ops.Linear(channels, 3 * channels)
        self.to_out = ops.Linear(channels, channels)
        self.norm2 = ops.LayerNorm(channels)
        self.ff_in = ops.Linear(channels, 4 * channels)
        self.ff_out = ops.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, F, C), N positions -> the same shape."""
        n, frames, channels = x.shape
        q, k, v = self.to_qkv(self.norm1(x)).view(n, frames, 3, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.to_out(attention(q, k, v).transpose(1, 2).reshape(n, frames, channels))
        return x + self.ff_out(F.gelu(self.ff_in(self.norm2(x))))


class Adapter(nn.Module):
    """(B, 4, F, h, w) -> (B, concat_channels, F, h, w).

    The first channels start as the latents themselves and the rest as zero, so that training begins from a plain
    concatenation of the blurred latents.
    """

    def __init__(self, config: AdapterConfig, latent_channels: int, concat_channels: int, *, operations=nn):
        super().__init__()
        ops, channels = operations, config.channels
        self.extra = concat_channels - latent_channels
        self.conv1 = ops.Conv2d(latent_channels, channels, 3, padding=1)
        self.conv2 = ops.Conv2d(channels, channels, 3, padding=1)
        self.temporal = TemporalTransformer(channels, config.heads, ops)
        self.conv_out = ops.Conv2d(channels, concat_channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, latents: Tensor) -> Tensor:
        b, _, frames, height, width = latents.shape
        x = latents.movedim(2, 1).flatten(0, 1)                                  # (B F, 4, h, w)
        h = F.silu(self.conv2(F.silu(self.conv1(x))))
        h = h.unflatten(0, (b, frames)).permute(0, 3, 4, 1, 2).reshape(b * height * width, frames, -1)
        h = self.temporal(h).view(b, height, width, frames, -1).permute(0, 3, 4, 1, 2).flatten(0, 1)
        out = self.conv_out(h) + torch.cat([x, x.new_zeros(x.shape[0], self.extra, height, width)], dim=1)
        return out.unflatten(0, (b, frames)).movedim(1, 2)
