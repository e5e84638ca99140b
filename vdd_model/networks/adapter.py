"""Encoder 2's latents -> the UNet's concat channels: convolutions and one temporal transformer (paper 4.2)."""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..config import AdapterConfig
from .layers import attention, zero_init

LOG_STD_OF_BOTH = math.log(0.8)    # the mean of both estimates of x0 errs by so much less than the adapter's own (benchmarks.estimates)


class TemporalTransformer(nn.Module):
    """Self-attention over the frames of every position, then a feed-forward; pre-norm, no positional encoding."""

    attend = staticmethod(attention)

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
        q, k, v = rearrange(self.to_qkv(self.norm1(x)), "n f (qkv h d) -> qkv n h f d", qkv=3, h=self.heads)
        x = x + self.to_out(rearrange(self.attend(q, k, v), "n h f d -> n f (h d)"))
        return x + self.ff_out(F.gelu(self.ff_in(self.norm2(x))))


class Adapter(nn.Module):
    """(B, 4 or 8, F, h, w) -> (B, concat_channels, F, h, w).

    The first channels start as the latents themselves and the rest as zero, so that training begins from a plain concatenation of the
    blurred latents. Behind encoder 2's, 8 channels hold a second estimate of x0: what the autoencoder reads in the picture of one step
    (`encode_pictures`), which knows the picture path and the prior. The estimate then is the mean of both, with a smaller std.
    """

    def __init__(self, config: AdapterConfig, latent_channels: int, concat_channels: int, *, operations=nn):
        super().__init__()
        ops, channels = operations, config.channels
        self.latent_channels, self.extra = latent_channels, concat_channels - latent_channels
        self.conv1 = ops.Conv2d(latent_channels, channels, 3, padding=1)
        self.conv2 = ops.Conv2d(channels, channels, 3, padding=1)
        self.temporal = TemporalTransformer(channels, config.heads, ops)
        self.conv_out = zero_init(ops.Conv2d(channels, concat_channels, 3, padding=1))

    def forward(self, latents: Tensor) -> Tensor:
        latents, picture = latents[:, :self.latent_channels], latents[:, self.latent_channels:]
        b, height = len(latents), latents.shape[3]
        x = rearrange(latents, "b c f h w -> (b f) c h w")
        y = F.silu(self.conv2(F.silu(self.conv1(x))))
        y = self.temporal(rearrange(y, "(b f) c h w -> (b h w) f c", b=b))
        y = rearrange(y, "(b h w) f c -> (b f) c h w", b=b, h=height)
        out = self.conv_out(y) + F.pad(x, (0, 0, 0, 0, 0, self.extra))
        out = rearrange(out, "(b f) c h w -> b c f h w", b=b)
        if not picture.shape[1]:
            return out
        mean, log_std, rest = out.split([len(picture[0]), len(picture[0]), out.shape[1] - 2 * len(picture[0])], dim=1)
        return torch.cat([(mean + picture) / 2, log_std + LOG_STD_OF_BOTH, rest], dim=1)
