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


class ConditionTransformer(nn.Module):
    """One pre-norm transformer layer over the frames of each position, two heads as wide as the input; its feed-forward has no norm.
    x: (N, F, C)."""

    def __init__(self, dim: int, *, operations=nn, **kw):
        super().__init__()
        linear = operations.Linear
        attention = nn.ModuleDict({"to_qkv": linear(dim, 6 * dim, bias=False, **kw), "to_out": nn.Sequential(linear(2 * dim, dim, **kw))})
        net = nn.Sequential(nn.Sequential(linear(dim, 4 * dim, **kw), nn.GELU()), nn.Identity(), linear(4 * dim, dim, **kw))
        self.layers = nn.ModuleList([nn.ModuleList([nn.ModuleDict({"norm": operations.LayerNorm(dim, **kw), "fn": attention}),
                                                    nn.ModuleDict({"net": net})])])

    def forward(self, x: Tensor) -> Tensor:
        attention, feed_forward = self.layers[0]
        q, k, v = rearrange(attention["fn"]["to_qkv"](attention["norm"](x)), "n f (qkv h d) -> qkv n h f d", qkv=3, h=2)
        x = x + attention["fn"]["to_out"](rearrange(F.scaled_dot_product_attention(q, k, v), "n h f d -> n f (h d)"))
        return x + feed_forward["net"](x)


def encode_condition(encoder: nn.Sequential, transformer: ConditionTransformer, pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """pixels (B, C, F, H, W) -> (B, 8, F, h, w), (h, w) = size; pixels are averaged to four times that after the first convolution."""
    x = encoder[:2](rearrange(pixels, "b c f h w -> (b f) c h w"))
    x = encoder[3:](F.adaptive_avg_pool2d(x, (4 * size[0], 4 * size[1])))
    x = transformer(rearrange(x, "(b f) c h w -> (b h w) f c", b=len(pixels)))
    return rearrange(x, "(b h w) f c -> b c f h w", b=len(pixels), h=size[0])
