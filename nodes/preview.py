"""Colors for the host's latent previews: the linear map from latents to RGB that fits the autoencoder best."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange

from ..vdd_model.networks.model import DeblurModel

IMAGES, SIZE = 8, 64


@torch.no_grad()
def latent_rgb(model: DeblurModel) -> tuple[list[list[float]], list[float]]:
    """Least squares over a few smooth colored pictures: (factors (channels, 3), bias (3,)) from scaled latents to RGB in [-1, 1]."""
    generator = torch.Generator().manual_seed(0)
    weight = model.vae.post_quant_conv.weight
    factor = model.config.vae.factor
    coarse = torch.rand(IMAGES, 3, 5, 5, generator=generator) * 2 - 1
    images = F.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic", align_corners=True).clamp(-1, 1)
    latents = model.vae.encode(images.to(weight))[0].float() * model.config.vae.latent_scale
    target, rows = (rearrange(x, "n c h w -> (n h w) c") for x in (F.avg_pool2d(images, factor), latents.cpu()))
    rows = torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
    solution = torch.linalg.lstsq(rows, target).solution
    return solution[:-1].tolist(), solution[-1].tolist()
