"""The whole model: two image encoders, adapter, 3D-UNet, autoencoder with its fidelity branch."""
from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from ..config import ModelConfig
from .adapter import Adapter
from .autoencoder import AutoencoderKL
from .fidelity import BlurGuide, with_neighbours
from .image_encoder import ImageEncoder
from .unet3d import UNet3D


class BlurCode(NamedTuple):
    """What encoder 2 says of blurred frames."""

    latents: Tensor              # (B, 4, F, h, w), scaled
    features: list[Tensor]       # fine to coarse, each (B, C, F, h_k, w_k); for decoding the coarsest holds frames t-1, t, t+1


class Condition(NamedTuple):
    """What the UNet is told of the blurred clip."""

    concat: Tensor               # (B, concat_channels, F, h, w)
    image: Tensor                # (B, embed_dim): semantic vector of the centre frame


def fold_time(x: Tensor) -> Tensor:
    """(B, C, F, H, W) -> (B F, C, H, W)."""
    return rearrange(x, "b c f h w -> (b f) c h w")


def unfold_time(x: Tensor, batch: int) -> Tensor:
    """(B F, C, H, W) -> (B, C, F, H, W)."""
    return rearrange(x, "(b f) c h w -> b c f h w", b=batch)


def drop_untrained_branch(model: DeblurModel) -> None:
    """Leave the fidelity branches away where no stage 3 has trained one: their last convolutions are zero, which shows the blurred frame
    itself, whatever the denoiser found. `decode` then is the plain decoder."""
    vae, names = model.vae, ("fidelity", "detail", "informed")
    if vae is not None and not any(p.any() for name in names if (branch := getattr(vae, name)) for p in branch.head.parameters()):
        vae.fidelity = vae.detail = vae.informed = None


class DeblurModel(nn.Module):
    """Networks and the few lines that join them. Frames (B, 3, F, H, W) in [-1, 1], H and W multiples of config.divisor."""

    def __init__(self, config: ModelConfig, *, operations=nn):
        super().__init__()
        self.config = config
        self.unet = UNet3D(config.unet, diffusion=config.diffusion, operations=operations)
        self.encoder1 = ImageEncoder(config.tower, config.vae, operations=operations)
        # Only the centre frame's semantic vector reaches the UNet, and that is encoder 1's: encoder 2 has no use for a tower.
        self.encoder2 = ImageEncoder(config.tower, config.vae, heads=("spatial",), operations=operations)
        self.adapter = Adapter(config.adapter, config.unet.latent_channels, config.unet.concat_channels, operations=operations)
        self.vae = AutoencoderKL(config.vae, operations=operations)
        self.null_text = nn.Parameter(torch.zeros(1, config.null_tokens, config.unet.context_dim))

    @torch.no_grad()
    def encode_target(self, sharp: Tensor) -> Tensor:
        """Sharp frames (B, 3, F, H, W) -> Z0 (B, 4, F, h, w), scaled; encoder 1's spatial head, no gradient."""
        latents, _ = self.encoder1.spatial(fold_time(sharp))
        return unfold_time(latents, len(sharp)) * self.config.vae.latent_scale

    def encode_blurred(self, blurred: Tensor, prior: Tensor | None = None) -> BlurCode:
        """Blurred frames (B, 3, F, H, W), and a prior's of the same, -> latents, and features as `decode` takes them: the coarsest of frame
        t hold those of t-1 and t+1 too. A caller that cuts a longer clip joins what `encode_each` gives."""
        latents, features = self.encode_each(blurred, prior)
        return BlurCode(latents, [*features[:-1], with_neighbours(features[-1])])

    def encode_each(self, blurred: Tensor, prior: Tensor | None = None) -> BlurCode:
        """As `encode_blurred`, but every frame's features are its own: `with_neighbours` joins the coarsest. A prior's stand behind
        the blurred frames' in every level, where a branch reads such; the latents are of the blurred frames alone."""
        latents, features = self.encoder2.spatial(fold_time(blurred))
        if prior is not None and self.config.vae.informed:
            features = [torch.cat(level, dim=1) for level in zip(features, self.encoder2.spatial(fold_time(prior))[1])]
        return BlurCode(unfold_time(latents, len(blurred)) * self.config.vae.latent_scale,
                        [unfold_time(level, len(blurred)) for level in features])

    def condition(self, latents: Tensor, centre: Tensor) -> Condition:
        """Encoder 2's latents (B, 4, F, h, w) and the clip's centre frame (B, 3, H, W; index len // 2) -> Condition."""
        return Condition(self.adapter(latents), self.encoder1.semantic(centre))

    def context(self, image: Tensor, drop: Tensor | bool = False) -> Tensor:
        """Semantic vectors (B, embed_dim) -> context tokens (B, L + 4, C). `drop` (True, or a bool mask (B,)) is the unconditional branch
        of guidance: the vector becomes zero (image-embedding dropout); the spatial condition is never dropped."""
        if drop is True:
            image = torch.zeros_like(image)
        elif drop is not False:
            image = image * ~drop.view(-1, 1)
        return self.unet.tokens(self.null_text.expand(len(image), -1, -1), image)

    def predict_v(self, x: Tensor, t: Tensor, condition: Condition, context=None) -> Tensor:
        """v at timestep t (B,) of noisy latents x (B, 4, F, h, w); `context`: tokens or the UNet's ContextCache."""
        return self.unet(x, t, self.context(condition.image) if context is None else context, condition.concat)

    def decode(self, z: Tensor, guide: BlurGuide | None = None) -> Tensor:
        """Scaled latents (B, 4, F, h, w) -> frames (B, 3, F, H, W), about [-1, 1], not clamped.

        With a guide of the same F frames the fidelity branch adds what the latents do not hold; strength 0 is exactly the plain decoder.
        """
        return unfold_time(self.vae.decode(fold_time(z) / self.config.vae.latent_scale, guide and guide.map(fold_time)), len(z))
