"""Model configurations: frozen dataclasses, one registry of presets, and their JSON form in checkpoints."""
from __future__ import annotations

import dataclasses
import difflib
import json
import typing
from dataclasses import dataclass, field, fields, is_dataclass

from .errors import UserError


class ConfigError(UserError, ValueError):
    """A configuration that cannot be used; the message is one sentence for the user."""


@dataclass(frozen=True)
class UNetConfig:
    """The TF-T2V 3D-UNet (VGen `UNetSD_TFT2V`). Defaults are the official full-size text + image model."""

    latent_channels: int = 4
    concat_channels: int = 8              # always present; every spatial condition arrives through them
    dim: int = 320                        # channels of the first level
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    blocks_per_level: int = 2             # not called num_res_blocks: that key confuses hosts that map LoRA keys
    num_heads: int = 8                    # heads of the first temporal transformer (inner width num_heads * head_dim)
    head_dim: int = 64
    attn_scales: tuple[float, ...] = (1.0, 0.5, 0.25)   # spatial + temporal transformers at these scales of the latent
    context_dim: int = 1024               # text tokens
    image_dim: int = 1024                 # projected semantic vector (official name y_dim)
    num_tokens: int = 4                   # context tokens made from one semantic vector
    norm_groups: int = 32
    estimate: bool = False                # concat begins with mean and log std of x0; the layers see and predict the standardised rest
    spatial_conditions: tuple[str, ...] = ()   # official adapters: depthmap, motion, mask, sketch, single_sketch, local_image

    @property
    def in_channels(self) -> int:
        """Channels of the input convolution: noisy latents + concat channels."""
        return self.latent_channels + self.concat_channels

    @property
    def divisor(self) -> int:
        """Latent height and width must be multiples of this."""
        return 2 ** (len(self.dim_mult) - 1)


@dataclass(frozen=True)
class FidelityConfig:
    """The decoder's fidelity branch: one entry per decoder level, coarse to fine."""

    channels: tuple[int, ...] = (256, 128, 128, 64)
    blocks: tuple[int, ...] = (2, 2, 1, 1)


@dataclass(frozen=True)
class FusionConfig:
    """What joins the picture path's frame with the prior's, or frames with their neighbours: one entry per level of its U-Net, fine to
    coarse."""

    channels: tuple[int, ...] = (64, 96, 128)
    blocks: tuple[int, ...] = (2, 2, 3)
    residual: bool = False                # beside the weight what neither knows, where the prior is not trusted


@dataclass(frozen=True)
class AutoencoderConfig:
    """Stable Diffusion's AutoencoderKL (defaults: SD 2.1 kl-f8)."""

    channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    blocks_per_level: int = 2
    latent_channels: int = 4
    patch_size: int = 1                   # pixels are unshuffled by this before the first convolution
    mid_attention: bool = True
    norm_groups: int = 32
    thumbnail: bool = False               # the first 3 latent channels carry the frame, averaged over factor x factor pixels
    latent_scale: float = 0.18215         # latents = posterior mean * latent_scale
    fidelity: FidelityConfig | None = field(default_factory=FidelityConfig)
    detail: bool = False                  # a second fidelity branch, for latents of several steps: it draws what a sample says
    informed: bool = False                # another one, for frames that a pretrained prior has seen: reads encoder 2's features of its too
    fusion: FusionConfig | None = None    # joins the fidelity branch's frame with that of a pretrained prior
    temporal: FusionConfig | None = None  # joins the frames that come of it with their neighbours, moved along the optical flow

    @property
    def factor(self) -> int:
        """Pixels per latent along height and width."""
        return self.patch_size * 2 ** (len(self.channel_mult) - 1)


@dataclass(frozen=True)
class TowerConfig:
    """The semantic head: open_clip's VisionTransformer (defaults: ViT-H/14)."""

    image_size: int = 224
    patch_size: int = 14
    width: int = 1280
    layers: int = 32
    head_width: int = 80
    mlp_ratio: float = 4.0
    embed_dim: int = 1024


@dataclass(frozen=True)
class AdapterConfig:
    """Encoder 2's latents -> the UNet's concat channels: convolutions and one temporal transformer."""

    channels: int = 128
    heads: int = 2


@dataclass(frozen=True)
class DiffusionConfig:
    """Noise schedule: linear in sqrt(beta), rescaled to zero terminal SNR (VGen `linear_sd`)."""

    num_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    zero_terminal_snr: bool = True
    offset_noise: float = 0.1


@dataclass(frozen=True)
class ModelConfig:
    """Everything needed to build the model. `num_frames` is the window it is made for."""

    name: str = "tft2v"
    num_frames: int = 16
    null_tokens: int = 77                 # length of the stored embedding of ""
    unet: UNetConfig = field(default_factory=UNetConfig)
    vae: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    tower: TowerConfig = field(default_factory=TowerConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)

    @property
    def divisor(self) -> int:
        """Frame height and width are padded to multiples of this (pixels)."""
        return self.vae.factor * self.unet.divisor

    @property
    def gives_estimate(self) -> bool:
        """Whether encoder 2's latents estimate x0, so that one step, whose noisy state tells nothing, is them: the UNet moves what one
        step shows by hardly anything."""
        return self.unet.estimate and self.diffusion.zero_terminal_snr

    def to_json(self) -> str:
        """JSON text, stored as `vdd.config` in a checkpoint."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Inverse of `to_json`. Raises ConfigError on an unknown key or a value of the wrong type."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"the model configuration is not JSON: {error}") from None
        return from_dict(cls, data)


def from_dict(cls: type, data: object, path: str = ""):
    """Build the dataclass `cls` from nested dicts and lists; unknown keys are refused with the nearest known one.

    Raises ConfigError, naming the key's full path.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{path.rstrip('.') or cls.__name__}: expected a mapping, found {type(data).__name__}")
    hints = typing.get_type_hints(cls)
    known = [f.name for f in fields(cls)]
    for key in data:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(known)}"
            raise ConfigError(f"unknown key {path}{key!r}{hint}")
    return cls(**{k: _convert(hints[k], v, f"{path}{k}") for k, v in data.items()})


def _convert(hint, value, path: str):
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if type(None) in args:                                   # Optional
        if value is None:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, path)
    if is_dataclass(hint):
        return from_dict(hint, value, path + ".")
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_convert(args[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {k: _convert(args[1], v, f"{path}.{k}") for k, v in value.items()}
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    name = getattr(hint, "__name__", str(hint))
    raise ConfigError(f"{path}: expected {name}, found {value!r}")


SMALL = ModelConfig(
    name="small",
    null_tokens=4,
    unet=UNetConfig(dim=48, dim_mult=(1, 2, 4), blocks_per_level=1, num_heads=2, head_dim=24, attn_scales=(0.25,),
                    context_dim=128, image_dim=128, norm_groups=16, estimate=True),
    vae=AutoencoderConfig(channels=32, channel_mult=(1, 2), blocks_per_level=1, patch_size=2, mid_attention=False,
                          norm_groups=16, thumbnail=True, latent_scale=1.0,
                          fidelity=FidelityConfig(channels=(96, 48), blocks=(8, 3)), detail=True, informed=True,
                          fusion=FusionConfig(residual=True), temporal=FusionConfig(channels=(48, 64), blocks=(2, 2), residual=True)),
    tower=TowerConfig(image_size=128, patch_size=16, width=128, layers=4, head_width=32, embed_dim=128),
    adapter=AdapterConfig(channels=48, heads=2),
)

PRESETS: dict[str, ModelConfig] = {"tft2v": ModelConfig(), "small": SMALL}


def preset(name: str) -> ModelConfig:
    """The preset called `name`. Raises ConfigError naming the presets there are."""
    if name not in PRESETS:
        raise ConfigError(f"no preset is called {name!r}; there are: {', '.join(PRESETS)}")
    return PRESETS[name]
