"""Encoders of TF-T2V's spatial conditions (the "vcomposer" weights): pixels -> the UNet's concat channels."""
from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

# name: (pixel channels, official name of the convolutions, official name of the transformer)
SPATIAL_CONDITIONS: dict[str, tuple[int, str, str]] = {
    "depthmap": (1, "depth_embedding", "depth_embedding_after"),
    "motion": (2, "motion_embedding", "motion_embedding_after"),
    "mask": (4, "masked_embedding", "mask_embedding_after"),
    "sketch": (1, "sketch_embedding", "sketch_embedding_after"),
    "single_sketch": (1, "single_sketch_embedding", "single_sketch_embedding_after"),
    "local_image": (3, "local_image_embedding", "local_image_embedding_after"),
}


def condition_encoder(channels: int, out_channels: int, *, operations=nn, **kw) -> nn.Sequential:
    """Three convolutions; the gap in the indices is the pooling that `encode_condition` does."""
    inner, conv = 4 * out_channels, operations.Conv2d
    return nn.Sequential(conv(channels, inner, 3, padding=1, **kw), nn.SiLU(), nn.Identity(),
                         conv(inner, inner, 3, stride=2, padding=1, **kw), nn.SiLU(),
                         conv(inner, out_channels, 3, stride=2, padding=1, **kw))


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int, head_dim: int, *, operations=nn, **kw):
        super().__init__()
        self.heads = heads
        self.to_qkv = operations.Linear(dim, 3 * heads * head_dim, bias=False, **kw)
        self.to_out = nn.Sequential(operations.Linear(heads * head_dim, dim, **kw))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.to_qkv(x), "n f (qkv h d) -> qkv n h f d", qkv=3, h=self.heads)
        return self.to_out(rearrange(F.scaled_dot_product_attention(q, k, v), "n h f d -> n f (h d)"))


class _PreNorm(nn.Module):
    def __init__(self, dim: int, fn: nn.Module, *, operations=nn, **kw):
        super().__init__()
        self.norm = operations.LayerNorm(dim, **kw)
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.norm(x)) + x


class _FeedForward(nn.Module):
    def __init__(self, dim: int, *, operations=nn, **kw):
        super().__init__()
        self.net = nn.Sequential(nn.Sequential(operations.Linear(dim, 4 * dim, **kw), nn.GELU()), nn.Identity(),
                                 operations.Linear(4 * dim, dim, **kw))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class ConditionTransformer(nn.Module):
    """One transformer layer over the frames of each position, two heads as wide as the input. x: (N, F, C)."""

    def __init__(self, dim: int, *, operations=nn, **kw):
        super().__init__()
        kw["operations"] = operations
        self.layers = nn.ModuleList([nn.ModuleList([_PreNorm(dim, _Attention(dim, 2, dim, **kw), **kw), _FeedForward(dim, **kw)])])

    def forward(self, x: Tensor) -> Tensor:
        attention, feed_forward = self.layers[0]
        x = attention(x)
        return feed_forward(x) + x


def encode_condition(encoder: nn.Sequential, transformer: ConditionTransformer, pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """pixels (B, C, F, H, W) -> (B, 8, F, h, w), (h, w) = size; pixels are averaged to four times that after the first convolution."""
    x = encoder[:2](rearrange(pixels, "b c f h w -> (b f) c h w"))
    x = encoder[3:](F.adaptive_avg_pool2d(x, (4 * size[0], 4 * size[1])))
    x = transformer(rearrange(x, "(b f) c h w -> (b h w) f c", b=len(pixels)))
    return rearrange(x, "(b h w) f c -> b c f h w", b=len(pixels), h=size[0])
