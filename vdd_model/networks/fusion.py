"""What joins the picture path's frame with a pretrained prior's."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import FusionConfig
from .layers import zero_init


class ResidualBlock(nn.Module):
    """x + 3x3 - SiLU - 3x3, without a norm: the answer must not depend on what else a tile shows. Starts as the identity."""

    def __init__(self, channels: int, ops):
        super().__init__()
        self.conv1 = ops.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = zero_init(ops.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(x)))


class DenseUNet(nn.Module):
    """A small U-Net of dense convolutions, without norms: (N, c_in, H, W) -> (N, channels[0], H, W); H and W are multiples of
    2^(levels - 1)."""

    def __init__(self, c_in: int, config: FusionConfig, ops):
        super().__init__()
        widths, blocks = config.channels, config.blocks
        self.conv_in = ops.Conv2d(c_in, widths[0], 3, padding=1)
        self.down = nn.ModuleList(ops.Conv2d(4 * fine, coarse, 3, padding=1) for fine, coarse in zip(widths, widths[1:]))
        self.encode = nn.ModuleList(nn.Sequential(*(ResidualBlock(width, ops) for _ in range(n))) for width, n in zip(widths, blocks))
        self.up = nn.ModuleList(ops.Conv2d(coarse, fine, 3, padding=1) for fine, coarse in zip(widths, widths[1:]))
        self.decode = nn.ModuleList(nn.Sequential(*(ResidualBlock(width, ops) for _ in range(n))) for width, n in zip(widths[:-1], blocks))

    def features(self, x: Tensor) -> Tensor:
        """What the last convolutions of a subclass read."""
        x = self.conv_in(x.contiguous(memory_format=torch.channels_last))
        skips = []
        for i, blocks in enumerate(self.encode):
            x = blocks(self.down[i - 1](F.pixel_unshuffle(x, 2)) if i else x)
            skips.append(x)
        for i in reversed(range(len(self.decode))):
            x = self.decode[i](skips[i] + self.up[i](F.interpolate(x, scale_factor=2.0, mode="nearest")))
        return x


class PriorFusion(DenseUNet):
    """w prior + (1 - w) (ours + residual), w in (0, 1) for every pixel, from a small U-Net.

    The picture path ("ours") reads motion from the neighbouring frames and errs on a single photograph; the prior knows photographs,
    nothing of time, and errs where the blur is not what it was trained on. Where each is right is seen in the two pictures and in the
    fidelity branch's state. What neither knows, the residual, enters as far as the prior is not trusted (free of that it lost on recorded
    clips what it gained on synthesised ones). The last convolutions start at zero: an untrained fusion is the mean of both.
    """

    def __init__(self, config: FusionConfig, state_channels: int, patch_size: int, ops):
        super().__init__(9 * patch_size**2 + state_channels, config, ops)
        self.patch_size = patch_size
        self.head = zero_init(ops.Conv2d(config.channels[0], patch_size**2, 3, padding=1))
        self.residual = zero_init(ops.Conv2d(config.channels[0], 3 * patch_size**2, 3, padding=1)) if config.residual else None

    def forward(self, state: Tensor, blurred: Tensor, ours: Tensor, prior: Tensor) -> Tensor:
        """state (N, C, H / patch_size, W / patch_size): the fidelity branch's, behind its blocks; pictures (N, 3, H, W) in [-1, 1] ->
        (N, 3, H, W) in the pictures' type. H / patch_size and W / patch_size are multiples of 2^(levels - 1)."""
        pictures = torch.cat([blurred, ours - blurred, prior - ours], dim=1)
        x = self.features(torch.cat([F.pixel_unshuffle(pictures, self.patch_size).to(state.dtype), state], dim=1))
        if self.residual is not None:
            ours = ours + F.pixel_shuffle(self.residual(x), self.patch_size).to(ours.dtype)
        return torch.lerp(ours, prior, torch.sigmoid(F.pixel_shuffle(self.head(x), self.patch_size).to(ours.dtype)))
