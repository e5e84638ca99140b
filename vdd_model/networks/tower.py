"""CLIP's visual tower (Radford et al., 2021), key for key as open_clip's `visual.*`, so that its weights load as they are.

Our own few lines, since the package imports torchvision, timm and a hub client: longer than the small model takes for a clip.
"""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..config import TowerConfig


def _random(*shape: int, std: float) -> nn.Parameter:
    """Uniform numbers of this standard deviation. Normal ones would, on the meta device, where models are built that get their
    weights from a file, make PyTorch import its compiler: seconds for nothing."""
    bound = math.sqrt(3) * std
    return nn.Parameter(nn.init.uniform_(torch.empty(shape), -bound, bound))


class SelfAttention(nn.Module):
    """Multi-head self-attention with torch.nn.MultiheadAttention's parameters."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * width, width)))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = rearrange(qkv, "n l (qkv h d) -> qkv n h l d", qkv=3, h=self.heads)
        return self.out_proj(rearrange(F.scaled_dot_product_attention(q, k, v), "n h l d -> n l (h d)"))


class ResidualBlock(nn.Module):
    """LayerNorm and self-attention, LayerNorm and a feed-forward with GELU, each around a shortcut."""

    def __init__(self, width: int, heads: int, mlp_ratio: float):
        super().__init__()
        inner = int(width * mlp_ratio)
        self.ln_1 = nn.LayerNorm(width)
        self.attn = SelfAttention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, inner), "c_proj": nn.Linear(inner, width)})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp.c_proj(F.gelu(self.mlp.c_fc(self.ln_2(x))))


class VisionTransformer(nn.Module):
    """Normalised images (N, 3, image_size, image_size) -> projected vectors of the class token (N, embed_dim)."""

    def __init__(self, config: TowerConfig):
        super().__init__()
        width, count = config.width, (config.image_size // config.patch_size) ** 2
        self.conv1 = nn.Conv2d(3, width, config.patch_size, config.patch_size, bias=False)
        self.class_embedding = _random(width, std=width**-0.5)
        self.positional_embedding = _random(1 + count, width, std=width**-0.5)
        self.ln_pre = nn.LayerNorm(width)
        blocks = (ResidualBlock(width, width // config.head_width, config.mlp_ratio) for _ in range(config.layers))
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(blocks)})
        self.ln_post = nn.LayerNorm(width)
        self.proj = _random(width, config.embed_dim, std=width**-0.5)

    def forward(self, images: Tensor) -> Tensor:
        patches = rearrange(self.conv1(images), "n c h w -> n (h w) c")
        first = self.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        x = self.ln_pre(torch.cat([first, patches], dim=1) + self.positional_embedding.to(patches.dtype))
        for block in self.transformer.resblocks:
            x = block(x)
        return self.ln_post(x[:, 0]) @ self.proj
