"""The paper's image encoder: a semantic head (OpenCLIP's visual tower) and a spatial head (the autoencoder's encoder).

The tower (Radford et al., 2021) is key for key open_clip's `visual.*`. Our own few lines, since that package imports torchvision, timm and
a hub client: longer than the small model takes for a clip.
"""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..config import AutoencoderConfig, TowerConfig
from .autoencoder import SpatialHead

# open_clip.constants OPENAI_DATASET_MEAN / _STD, RGB of [0, 1] images
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def preprocess(images: Tensor, size: int) -> Tensor:
    """open_clip.transform.image_transform of tensors: (N, 3, H, W) in [-1, 1] -> (N, 3, size, size), normalised; the shorter side becomes
    `size` (bicubic, antialiased), then a crop of the centre."""
    height, width = images.shape[-2:]
    long = int(size * max(height, width) / min(height, width))
    resized = (size, long) if height <= width else (long, size)
    x = F.interpolate(images.float(), size=resized, mode="bicubic", antialias=True, align_corners=False)
    top, left = int(round((resized[0] - size) / 2.0)), int(round((resized[1] - size) / 2.0))
    mean, std = (torch.tensor(v)[:, None, None].to(x.device, non_blocking=True) for v in (MEAN, STD))
    return (x[..., top:top + size, left:left + size] * 0.5 + 0.5 - mean) / std


def _random(*shape: int, std: float) -> nn.Parameter:
    """Uniform numbers of this standard deviation. Normal ones would, on the meta device, where models are built that get their
    weights from a file, make PyTorch import its compiler: seconds for nothing."""
    bound = math.sqrt(3) * std
    return nn.Parameter(nn.init.uniform_(torch.empty(shape), -bound, bound))


class ResidualBlock(nn.Module):
    """LayerNorm and self-attention, LayerNorm and a feed-forward with GELU, each around a shortcut."""

    def __init__(self, width: int, heads: int, mlp_ratio: float):
        super().__init__()
        inner = int(width * mlp_ratio)
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads)      # for its weights: called in inference, it is slower in float32
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, inner), "c_proj": nn.Linear(inner, width)})

    def forward(self, x: Tensor) -> Tensor:
        qkv = F.linear(self.ln_1(x), self.attn.in_proj_weight, self.attn.in_proj_bias)
        q, k, v = rearrange(qkv, "n l (qkv h d) -> qkv n h l d", qkv=3, h=self.attn.num_heads)
        x = x + self.attn.out_proj(rearrange(F.scaled_dot_product_attention(q, k, v), "n h l d -> n l (h d)"))
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


class ImageEncoder(nn.Module):
    """One class, two instances that start from the same weights (paper 4.1); `heads` says which heads an instance has."""

    def __init__(self, tower: TowerConfig, vae: AutoencoderConfig, *, heads: tuple[str, ...] = ("semantic", "spatial"), operations=nn):
        super().__init__()
        self.image_size = tower.image_size
        self.semantic_head = VisionTransformer(tower) if "semantic" in heads else None
        self.spatial_head = SpatialHead(vae, operations) if "spatial" in heads else None

    def semantic(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> projected, un-normalised vectors (N, embed_dim)."""
        dtype = self.semantic_head.conv1.weight.dtype
        return self.semantic_head(preprocess(images, self.image_size).to(dtype))

    def spatial(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(N, 3, H, W) in [-1, 1] -> unscaled latents (N, latent_channels, h, w), features fine to coarse."""
        mean, _, features = self.spatial_head(images.to(self.spatial_head.quant_conv.weight.dtype))
        return mean, features
