"""The picture path beside the decoder: the fidelity branch, for what the latents cannot carry, from the blurred frames themselves."""
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from einops.layers.torch import Rearrange
from torch import Tensor, nn

from ..config import AutoencoderConfig, FidelityConfig
from .layers import zero_init

NEIGHBOURS = 3     # frames t-1, t, t+1 whose coarsest encoder features the branch sees


class BlurGuide(NamedTuple):
    """The blurred frames whose sharp latents are decoded, and how much of the picture is theirs.

    As clips, `DeblurModel.decode` takes them so: pixels (B, 3, F, H, W) in [-1, 1] and encoder 2's features, fine to coarse, each
    (B, C, F, h_k, w_k), the coarsest with its neighbours (`DeblurModel.encode_blurred` makes them; None: not made yet). As pictures,
    without F and with B F in place of B, `AutoencoderKL.decode` does. Pixels may be float32 beside a network of half precision: the sum
    then is float32, free of banding. `prior` holds what a pretrained prior made of the same frames, of the pixels' shape and range.
    """

    pixels: Tensor
    features: list[Tensor] | None = None
    strength: float = 1.0             # fidelity, 0..1: of the branch against the plain decoder
    detail: bool = False              # the latents were drawn in several steps: the detail branch speaks, where there is one
    prior: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> BlurGuide:
        """`function` of the pixels, of the prior's and of every level of the features."""
        return self._replace(pixels=function(self.pixels), features=self.features and [function(level) for level in self.features],
                             prior=None if self.prior is None else function(self.prior))


def with_neighbours(x: Tensor) -> Tensor:
    """(B, C, F, h, w) -> (B, 3 C, F, h, w): the frames before, at and after; the clip's ends repeat themselves."""
    padded = torch.cat([x[:, :, :1], x, x[:, :, -1:]], dim=2)
    return torch.cat([padded[:, :, :-2], x, padded[:, :, 2:]], dim=1)


def channel_norm(channels: int, ops) -> nn.Sequential:
    """LayerNorm over the channels of every position: no statistic crosses positions, so tiles agree."""
    return nn.Sequential(OrderedDict(rows=Rearrange("n c h w -> n h w c"), norm=ops.LayerNorm(channels, eps=1e-6),
                                     images=Rearrange("n h w c -> n c h w")))


class GatedBlock(nn.Module):
    """Gated depthwise block without activation functions (NAFNet, arXiv 2204.04676, without its global pooling,
    which would differ between a tile and the whole frame)."""

    def __init__(self, channels: int, ops):
        super().__init__()
        self.norm1 = channel_norm(channels, ops)
        self.expand = ops.Conv2d(channels, 2 * channels, 1)
        self.depthwise = ops.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.project = ops.Conv2d(channels, channels, 1)
        self.norm2 = channel_norm(channels, ops)
        self.ff_in = ops.Conv2d(channels, 2 * channels, 1)
        self.ff_out = ops.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.depthwise(self.expand(self.norm1(x))).chunk(2, dim=1)
        x = x + self.project(a * b)
        a, b = self.ff_in(self.norm2(x)).chunk(2, dim=1)
        return x + self.ff_out(a * b)


class FidelityBranch(nn.Module):
    """What the latents cannot carry: a residual on the blurred frame, from encoder 2's and the decoder's features.

    Runs beside the decoder, coarse to fine. At every level it joins the decoder's features (what the sharp picture is),
    encoder 2's features of the blurred frame (where the edges are; at the coarsest level those of the two neighbouring
    frames too, from which the motion can be read), and its own state from the level below. It never writes into the
    decoder, so strength 0 is exactly the plain decoder. The last convolution starts at zero: an untrained branch returns
    the blurred frame itself. With `informed` encoder 2's features of a pretrained prior's frames are joined in the same way, those of the
    neighbours among them.
    """

    def __init__(self, config: FidelityConfig, vae: AutoencoderConfig, ops, *, informed: bool = False):
        super().__init__()
        widths = [vae.channels * m for m in reversed(vae.channel_mult)]           # coarse to fine
        if not len(config.channels) == len(config.blocks) == len(widths):
            raise ValueError(f"the fidelity branch needs one entry per decoder level ({len(widths)})")
        self.patch_size = vae.patch_size
        self.join, self.levels, below = nn.ModuleList(), nn.ModuleList(), 0
        self.join_prior = nn.ModuleList() if informed else None
        self.encoder_widths = [width * (1 if i else NEIGHBOURS) for i, width in enumerate(widths)]     # of the features of one picture
        for i, (width, channels, blocks) in enumerate(zip(widths, config.channels, config.blocks)):
            self.join.append(ops.Conv2d(width + self.encoder_widths[i] + below, channels, 1))
            if informed:
                self.join_prior.append(zero_init(ops.Conv2d(self.encoder_widths[i], channels, 1, bias=False)))
            self.levels.append(nn.Sequential(*(GatedBlock(channels, ops) for _ in range(blocks))))
            below = channels
        self.head = zero_init(ops.Conv2d(below, 3 * vae.patch_size**2, 3, padding=1))

    def forward(self, decoder_features: list[Tensor], encoder_features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """decoder_features coarse to fine, encoder_features fine to coarse (as `encode_each` makes them, with a prior's or without) ->
        residual (N, 3, H, W) and the state that it was made of (N, C, H / patch_size, W / patch_size)."""
        state = None
        for i, (join, blocks, dec, enc) in enumerate(zip(self.join, self.levels, decoder_features, reversed(encoder_features))):
            enc, prior = self.told_apart(i, enc)
            parts = [dec, enc] if state is None else [dec, enc, F.interpolate(state, scale_factor=2.0, mode="nearest")]
            joined = join(torch.cat(parts, dim=1))
            if prior is not None:
                joined = joined + self.join_prior[i](prior)
            # channels-last in every type: the blocks' norms need rows of channels, and float32 runs 1.4 x as fast on a CPU
            state = blocks(joined.contiguous(memory_format=torch.channels_last))
        return F.pixel_shuffle(self.head(state), self.patch_size), state

    def told_apart(self, level: int, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """Encoder 2's features of a level -> those of the blurred frames, and those of the prior's where the branch reads them."""
        if features.shape[1] == self.encoder_widths[level]:
            return features, None
        blurred, prior = rearrange(features, "n (t of c) h w -> of n (t c) h w", of=2, t=NEIGHBOURS if level == 0 else 1)
        return blurred, prior if self.join_prior is not None else None
