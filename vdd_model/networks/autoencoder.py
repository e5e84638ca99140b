"""Stable Diffusion's AutoencoderKL, key for key, with the picture path beside its decoder (fidelity.py).

Source of the layout: CompVis latent-diffusion / SD 2.1 `first_stage_model.*` (kl-f8). `patch_size` > 1 puts a pixel
unshuffle before the first and a pixel shuffle behind the last convolution; with 1 the network is the official one.
"""
from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..config import AutoencoderConfig
from .fidelity import BlurGuide, FidelityBranch
from .fusion import PriorFusion
from .layers import conv_stride_2, silu, zero_init
from .temporal import TemporalFusion

LOGVAR_RANGE = (-30.0, 20.0)      # clamp of the official DiagonalGaussianDistribution


def fast_layout(x: Tensor, always: bool = False) -> Tensor:
    """Channels-last, except float32 on the CPU unless `always`: there its convolution sums up to five times less exactly."""
    if not always and x.dtype in (torch.float32, torch.float64) and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
        return x
    x = x.contiguous(memory_format=torch.channels_last)
    # of a single picture any stride of the first axis passes for contiguous, yet only with this one convolutions give what is channels-last
    return x.clone(memory_format=torch.channels_last) if x.stride(0) != x[0].numel() else x


class ResBlock(nn.Module):
    """GroupNorm - SiLU - 3x3, twice, around a shortcut."""

    def __init__(self, c_in: int, c_out: int, groups: int, ops):
        super().__init__()
        self.norm1 = ops.GroupNorm(groups, c_in, eps=1e-6)
        self.conv1 = ops.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2 = ops.GroupNorm(groups, c_out, eps=1e-6)
        self.conv2 = ops.Conv2d(c_out, c_out, 3, padding=1)
        self.nin_shortcut = ops.Conv2d(c_in, c_out, 1) if c_in != c_out else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(silu(self.norm1(x)))
        h = self.conv2(silu(self.norm2(h)))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class AttentionBlock(nn.Module):
    """Single-head self-attention over the positions of one frame."""

    def __init__(self, channels: int, groups: int, ops):
        super().__init__()
        self.norm = ops.GroupNorm(groups, channels, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (ops.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (rearrange(layer(y), "n c h w -> n 1 (h w) c") for layer in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(rearrange(y, "n 1 (h w) c -> n c h w", h=x.shape[2]).contiguous())


class Downsample(nn.Module):
    """Stride-2 convolution with the official asymmetric padding (right and bottom)."""

    def __init__(self, channels: int, ops):
        super().__init__()
        self.conv = ops.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return conv_stride_2(self.conv, F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Sequential):
    """Nearest neighbour x 2, then 3x3."""

    def __init__(self, channels: int, ops):
        super().__init__(OrderedDict(enlarge=nn.Upsample(scale_factor=2.0), conv=ops.Conv2d(channels, channels, 3, padding=1)))


def level(c_in: int, c_out: int, count: int, groups: int, ops) -> nn.ModuleDict:
    """The blocks of one resolution; the change to the next comes beside them."""
    return nn.ModuleDict({"block": nn.ModuleList(ResBlock(c_out if i else c_in, c_out, groups, ops) for i in range(count))})


def middle(channels: int, config: AutoencoderConfig, ops) -> nn.Sequential:
    """Residual block, attention (where configured), residual block at the coarsest resolution."""
    return nn.Sequential(OrderedDict(
        block_1=ResBlock(channels, channels, config.norm_groups, ops),
        attn_1=AttentionBlock(channels, config.norm_groups, ops) if config.mid_attention else nn.Identity(),
        block_2=ResBlock(channels, channels, config.norm_groups, ops)))


class Encoder(nn.Module):
    """Pixels (N, 3, H, W) in [-1, 1] -> hidden (N, 2 * latent_channels, H/f, W/f) and the features of every level."""

    def __init__(self, config: AutoencoderConfig, ops):
        super().__init__()
        groups, widths = config.norm_groups, [config.channels * m for m in config.channel_mult]
        self.patch_size, self.channels_last = config.patch_size, False     # in float32 on a CPU: `cpu.accelerate` turns it on
        self.conv_in = ops.Conv2d(3 * config.patch_size**2, config.channels, 3, padding=1)
        self.down = nn.ModuleList()
        for i, (above, width) in enumerate(zip((config.channels, *widths), widths)):
            self.down.append(level(above, width, config.blocks_per_level, groups, ops))
            if i < len(widths) - 1:
                self.down[i]["downsample"] = Downsample(width, ops)
        self.mid = middle(width, config, ops)
        self.norm_out = ops.GroupNorm(groups, width, eps=1e-6)
        self.conv_out = ops.Conv2d(width, 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Returns (hidden, features): features fine to coarse, one per level; the coarsest is taken behind the middle."""
        x = fast_layout(x, self.channels_last)
        h = self.conv_in(F.pixel_unshuffle(x, self.patch_size) if self.patch_size > 1 else x)
        features = []
        for level in self.down:
            for block in level.block:
                h = block(h)
            if "downsample" in level:
                features.append(h)
                h = level.downsample(h)
        h = self.mid(h)
        features.append(h)
        return self.conv_out(silu(self.norm_out(h))), features


class Decoder(nn.Module):
    """Hidden latents (N, latent_channels, h, w) -> pixels (N, 3, H, W), and the features that the fidelity branch reads."""

    def __init__(self, config: AutoencoderConfig, ops):
        super().__init__()
        groups, widths = config.norm_groups, [config.channels * m for m in config.channel_mult]
        self.patch_size, self.channels_last = config.patch_size, False     # in float32 on a CPU: `cpu.accelerate` turns it on
        self.conv_in = ops.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.mid = middle(widths[-1], config, ops)
        self.up = nn.ModuleList()
        for i, (width, below) in reversed(list(enumerate(zip(widths, (*widths[1:], widths[-1]))))):
            self.up.insert(0, level(below, width, config.blocks_per_level + 1, groups, ops))
            if i > 0:
                self.up[0]["upsample"] = Upsample(width, ops)
        self.norm_out = ops.GroupNorm(groups, widths[0], eps=1e-6)
        self.conv_out = ops.Conv2d(widths[0], 3 * config.patch_size**2, 3, padding=1)

    def features(self, z: Tensor) -> list[Tensor]:
        """Features behind the blocks of every level, coarse to fine."""
        h = self.mid(self.conv_in(fast_layout(z, self.channels_last)))
        features = []
        for level in reversed(self.up):
            for block in level.block:
                h = block(h)
            features.append(h)
            if "upsample" in level:
                h = level.upsample(h)
        return features

    def pixels(self, finest: Tensor) -> Tensor:
        """The finest features -> pixels."""
        h = self.conv_out(silu(self.norm_out(finest)))
        return F.pixel_shuffle(h, self.patch_size) if self.patch_size > 1 else h


class SpatialHead(nn.Module):
    """The encoder and its quantisation convolution: pixels -> latents and the features of its levels."""

    def __init__(self, config: AutoencoderConfig, operations=nn):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, operations)
        self.quant_conv = operations.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """x (N, 3, H, W) in [-1, 1], H and W multiples of the factor -> mean, logvar, each (N, latent_channels, h, w), unscaled, and the
        features, fine to coarse.

        With `config.thumbnail` the mean's first three channels hold the frame, averaged over factor x factor pixels: a shortcut without
        weights (in the spirit of DC-AE's, arXiv 2410.10733), so that color and layout need not be learned.
        """
        hidden, features = self.encoder(x)
        mean, logvar = self.quant_conv(hidden).chunk(2, dim=1)
        if self.config.thumbnail:
            mean = torch.cat([mean[:, :3] + F.avg_pool2d(x, self.config.factor), mean[:, 3:]], dim=1)
        return mean, logvar.clamp(*LOGVAR_RANGE), features


class AutoencoderKL(SpatialHead):
    """Encoder, decoder, quantisation convolutions: official keys. The others are ours and may be absent.

    `fidelity`, `detail` and `informed` are fidelity branches: one for the latents of one step, a mean that holds what is known and no more;
    one for those of several steps, samples, whose detail it draws; one for the mean where a pretrained prior's frames are there too. One
    for mean and samples would have to doubt the samples for the sake of the mean; beside a prior a branch reads more, and leaves more to
    the fusion. `temporal` joins whole frames, behind decoding: who streams them calls it.
    With `config.thumbnail` the decoder's output is a correction of the enlarged thumbnail (see `SpatialHead`).
    """

    def __init__(self, config: AutoencoderConfig, *, operations=nn):
        super().__init__(config, operations)
        self.decoder = Decoder(config, operations)
        self.post_quant_conv = operations.Conv2d(config.latent_channels, config.latent_channels, 1)
        self.fidelity = self.detail = self.informed = self.fusion = self.temporal = None
        if branch := config.fidelity:
            self.fidelity = FidelityBranch(branch, config, operations)
            self.detail = FidelityBranch(branch, config, operations) if config.detail else None
            self.informed = FidelityBranch(branch, config, operations, informed=True) if config.informed else None
            self.fusion = PriorFusion(config.fusion, branch.channels[-1], config.patch_size, operations) if config.fusion else None
            self.temporal = TemporalFusion(config.temporal, operations) if config.temporal else None
        if config.thumbnail:
            for layer in (self.quant_conv, self.decoder.conv_out):           # training starts from the thumbnail itself
                zero_init(layer)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, 3, H, W) in [-1, 1], H and W multiples of the factor -> mean, logvar, each (N, latent_channels, h, w), unscaled."""
        return self(x)[:2]

    def decode(self, z: Tensor, guide: BlurGuide | None = None) -> Tensor:
        """Unscaled latents z (N, latent_channels, h, w) -> pixels (N, 3, H, W), about [-1, 1], not clamped.

        With a guide: (1 - strength) * plain + strength * (blurred + residual), the residual of the fidelity or the detail branch. With a
        prior's frames the second term is joined with them.
        """
        levels = self.decoder.features(self.post_quant_conv(z))
        if guide is None or not guide.strength or self.fidelity is None:
            return self._plain(levels[-1], z)
        if guide.features is None:
            raise ValueError("fidelity > 0 needs encoder 2's features of the blurred frames")
        informed = self.fidelity if guide.prior is None or self.informed is None else self.informed
        branch = self.detail if guide.detail and self.detail is not None else informed
        residual, state = branch(levels, guide.features)
        restored = guide.pixels + residual
        if guide.prior is not None and self.fusion is not None:
            restored = self.fusion(state, guide.pixels, restored, guide.prior)
        return restored if guide.strength == 1.0 else torch.lerp(self._plain(levels[-1], z).to(restored.dtype), restored, guide.strength)

    def _plain(self, finest: Tensor, z: Tensor) -> Tensor:
        pixels = self.decoder.pixels(finest)
        if not self.config.thumbnail:
            return pixels
        return pixels + F.interpolate(z[:, :3], scale_factor=float(self.config.factor), mode="bilinear", align_corners=False)
