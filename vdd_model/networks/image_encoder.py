"""The paper's image encoder: a semantic head (OpenCLIP's visual tower) and a spatial head (the autoencoder's encoder)."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import AutoencoderConfig, TowerConfig
from .autoencoder import SpatialHead
from .tower import VisionTransformer

# open_clip.constants OPENAI_DATASET_MEAN / _STD, RGB of [0, 1] images
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def preprocess(images: Tensor, size: int) -> Tensor:
    """open_clip's evaluation transform for tensors: (N, 3, H, W) in [-1, 1] -> (N, 3, size, size), normalised.

    Shorter side to `size` (bicubic, antialiased), centre crop, normalise (open_clip.transform.image_transform).
    """
    height, width = images.shape[-2:]
    long = int(size * max(height, width) / min(height, width))
    resized = (size, long) if height <= width else (long, size)
    x = F.interpolate(images.float(), size=resized, mode="bicubic", antialias=True, align_corners=False)
    top, left = int(round((resized[0] - size) / 2.0)), int(round((resized[1] - size) / 2.0))
    mean, std = (torch.tensor(v)[:, None, None].to(x.device, non_blocking=True) for v in (MEAN, STD))
    return (x[..., top:top + size, left:left + size] * 0.5 + 0.5 - mean) / std


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
