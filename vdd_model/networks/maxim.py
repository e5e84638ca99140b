"""MAXIM (Tu et al. 2022, arXiv 2201.02973), the deblurring network S-3: a prior that knows single photographs.

Every tensor here is in rows, (N, H, W, C): what the paper does along "axes" is then one matrix product over rows. Three rewritings keep
its arithmetic and save most of its time: the two halves of a projection are two layers, so that no half is copied out of the whole; mixing
over the cells of a grid, or over the pixels of a block, is one product for all of them; and 1 x 1 convolutions that follow one another
(of resized features, then of their concatenation) are one, applied where the picture is smallest. H and W are multiples of 64.
"""
from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

WIDTHS = (32, 64, 128)         # channels of the three levels, fine to coarse
SIDES = (16, 16, 8)            # side of a block in pixels, and of the grid in cells, at each level
STAGES = 3                     # S-3: three networks in a row, each supervised (paper 3.1)
BOTTLENECK_SIDE = 8
MULTIPLE = 64                  # height and width must be multiples of this: the coarsest level (1/8) is cut into blocks of 8
EPS = 1e-6
PATTERNS = {"grid": "(p h) (q w) c", "block": "(h p) (w q) c"}         # a dense layer along an axis mixes what differs in p and q


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form."""
    return F.gelu(x, approximate="tanh")


class Conv(nn.Conv2d):
    """A convolution of rows (N, H, W, C): 3 x 3, or 4 x 4 at every second position."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1):
        super().__init__(c_in, c_out, 2 + stride, stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Up(nn.ConvTranspose2d):
    """A 2 x 2 transposed convolution of rows: twice as high and wide."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__(c_in, c_out, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Norm(nn.LayerNorm):
    """LayerNorm over the channels."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=EPS)


class Mix(nn.Module):
    """A dense layer over positions: over the cells of a side x side grid laid over the picture ("grid": global, dilated), or over
    the pixels of side x side blocks ("block": local). Paper 3.2, figure 3."""

    def __init__(self, axis: str, side: int):
        super().__init__()
        self.axis, self.side = axis, side
        self.weight, self.bias = nn.Parameter(torch.empty(side**2, side**2)), nn.Parameter(torch.empty(side**2))

    def forward(self, x: Tensor, offset: float = 0.0) -> Tensor:
        """(N, H, W, C) -> the same shape (a view with its channels together), plus `offset`."""
        (n, height, width, _), side, pattern = x.shape, self.side, PATTERNS[self.axis]
        rows = rearrange(x, f"n {pattern} -> (p q) (n h w c)", p=side, q=side)
        rows = torch.addmm(self.bias[:, None] + offset, self.weight, rows)
        return rearrange(rows, f"(p q) (n h w c) -> n {pattern}", p=side, n=n, h=height // side, w=width // side)


class GatedMlp(nn.Module):
    """gMLP along one axis (paper figure 3): half of the channels, mixed over positions, gates the other half."""

    def __init__(self, channels: int, axis: str, side: int):
        super().__init__()
        self.norm, self.to_u, self.to_v = Norm(channels), nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.norm_v, self.mix, self.out = Norm(channels), Mix(axis, side), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        u, v = gelu(self.to_u(y)), self.norm_v(gelu(self.to_v(y)))
        return x + self.out(u * self.mix(v, 1.0))


class MultiAxisMlp(nn.Module):
    """The multi-axis gated MLP block (paper 3.2): half of the channels sees the grid, half the blocks."""

    def __init__(self, channels: int, side: int):
        super().__init__()
        self.norm, self.to_grid, self.to_block = Norm(channels), nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.grid, self.block = GatedMlp(channels, "grid", side), GatedMlp(channels, "block", side)
        self.out = Join(channels, channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.out(self.grid(gelu(self.to_grid(y))), self.block(gelu(self.to_block(y))))


class Join(nn.Module):
    """A 1 x 1 convolution of several tensors laid side by side, as the sum of each one's part: nothing is concatenated."""

    def __init__(self, c_out: int, *c_in: int):
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(c, c_out, bias=i == 0) for i, c in enumerate(c_in))

    def forward(self, *xs: Tensor) -> Tensor:
        return functools.reduce(torch.add, (part(x) for part, x in zip(self.parts, xs)))


class JoinLevels(nn.Module):
    """The same for the features of all `levels`, each resized to `level`: resizing keeps to channels, so the layer may go first where
    the features are smaller than what is asked for."""

    def __init__(self, widths: Sequence[int], levels: Sequence[int], level: int):
        super().__init__()
        self.ratios = [2.0 ** (j - level) for j in levels]
        self.parts = nn.ModuleList(nn.Linear(widths[j], widths[level], bias=i == 0) for i, j in enumerate(levels))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features of the three levels -> (N, H, W, C) at the level's size."""
        return functools.reduce(torch.add, (resized(part(x), ratio) if ratio > 1 else part(resized(x, ratio))
                                            for part, x, ratio in zip(self.parts, features, self.ratios)))


def resized(x: Tensor, ratio: float) -> Tensor:
    """Bilinear; with antialiasing where it becomes smaller (ratio 1/2 or 1/4), which then is a convolution with a triangle's taps. At the
    border it weighs what is inside: an eighth of the taps is outside there, along each axis."""
    if ratio == 1:
        return x
    x = x.permute(0, 3, 1, 2)
    if ratio > 1:
        return F.interpolate(x, scale_factor=ratio, mode="bilinear").permute(0, 2, 3, 1)
    step, channels = round(1 / ratio), x.shape[1]
    taps = 1 - (torch.arange(2 * step, dtype=torch.float32, device=x.device) - (step - 0.5)).abs() / step
    kernel = torch.outer(taps, taps).div_(step**2).to(x.dtype).expand(channels, 1, -1, -1)
    rows = F.conv2d(x, kernel, None, step, step // 2, groups=channels).permute(0, 2, 3, 1)
    for edge in (rows[:, 0], rows[:, -1], rows[:, :, 0], rows[:, :, -1]):
        edge.mul_(8 / 7)
    return rows


class ChannelAttention(nn.Module):
    """Squeeze and excitation: x times what the mean of the picture says of each channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.squeeze, self.excite = nn.Linear(channels, channels // 4), nn.Linear(channels // 4, channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((1, 2), keepdim=True)))))


class ConvBlock(nn.Module):
    """Residual channel attention block (RCAB) of two convolutions."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm, self.conv1, self.conv2 = Norm(channels), Conv(channels, channels), Conv(channels, channels)
        self.attention = ChannelAttention(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.leaky_relu_(self.conv1(self.norm(x)), 0.2))
        return torch.addcmul(x, y, self.attention(y))


class DenseBlock(nn.Module):
    """The same with dense layers (RDCAB), at the coarsest resolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm, self.ff_in, self.ff_out = Norm(channels), nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.attention = ChannelAttention(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.ff_out(gelu(self.ff_in(self.norm(x))))
        return torch.addcmul(x, y, self.attention(y))


class GateWeights(nn.Module):
    """What one branch tells the other in cross-gating: half of its channels mixed over the grid, half over the blocks."""

    def __init__(self, channels: int, side: int):
        super().__init__()
        self.norm, self.to_grid, self.to_block = Norm(channels), nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.grid, self.block, self.out = Mix("grid", side), Mix("block", side), Join(channels, channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.out(self.grid(gelu(self.to_grid(x))), self.block(gelu(self.to_block(x))))


class CrossGating(nn.Module):
    """Cross-gating (paper 3.3, figure 4): each of two inputs is gated by the other. Both come already projected to `channels`."""

    def __init__(self, channels: int, side: int):
        super().__init__()
        self.norm_x, self.norm_y = Norm(channels), Norm(channels)
        self.in_x, self.in_y = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.gate_x, self.gate_y = GateWeights(channels, side), GateWeights(channels, side)
        self.out_x, self.out_y = nn.Linear(channels, channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        a, b = gelu(self.in_x(self.norm_x(x))), gelu(self.in_y(self.norm_y(y)))
        from_x, from_y = self.gate_x(a), self.gate_y(b)
        y = y + self.out_y(b * from_x)
        return x + y + self.out_x(a * from_y), y


class Fuse(nn.Module):
    """Cross-gating of features of one level with others, each behind a 1 x 1 convolution; only the first result is used."""

    def __init__(self, channels: int, side: int):
        super().__init__()
        self.in_x, self.in_y, self.gating = nn.Linear(channels, channels), nn.Linear(channels, channels), CrossGating(channels, side)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.gating(self.in_x(x), self.in_y(y))[0]


class Blocks(nn.Module):
    """Two pairs of multi-axis MLP and residual block around a shortcut: what an encoder's and a decoder's level computes (figure 2)."""

    def __init__(self, channels: int, side: int, block: type[nn.Module]):
        super().__init__()
        self.pairs = nn.ModuleList(nn.Sequential(MultiAxisMlp(channels, side), block(channels)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for pair in self.pairs:
            y = pair(y)
        return x + y


class SupervisedAttention(nn.Module):
    """Hands features to the next stage, weighted by the picture that they already show (SAM of MPRNet)."""

    def __init__(self, channels: int):
        super().__init__()
        self.features, self.picture, self.weights = Conv(channels, channels), Conv(channels, 3), Conv(3, channels)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        return torch.addcmul(x, self.features(x), torch.sigmoid(self.weights(self.picture(x) + image)))


class Stage(nn.Module):
    """One of the three networks in a row: a U-Net over three levels, whose skips see all levels (figure 2)."""

    def __init__(self, widths: Sequence[int], first: bool, last: bool):
        super().__init__()
        levels, coarsest = list(zip(widths, SIDES)), widths[-1]
        below = (*widths[1:], coarsest)                      # channels that come up from the next coarser level
        self.input = nn.ModuleList(Conv(3, c) for c in widths)
        self.fuse_input = nn.ModuleList(Fuse(*level) for level in levels if not first)
        self.join = nn.ModuleList(Join(c, *widths[max(i - 1, 0):i + 1]) for i, c in enumerate(widths))
        self.encoder = nn.ModuleList(Blocks(*level, ConvBlock) for level in levels)
        self.fuse_encoder = nn.ModuleList(Fuse(*level) for level in levels if not first)
        self.down = nn.ModuleList(Conv(c, c, 2) for c in widths)
        self.bottleneck_in = nn.ModuleList(nn.Linear(coarsest, coarsest) for _ in range(2))
        self.bottleneck = nn.ModuleList(Blocks(coarsest, BOTTLENECK_SIDE, DenseBlock) for _ in range(2))
        self.bridge = nn.ModuleList(JoinLevels(widths, (0, 1, 2), i) for i in range(3))
        self.raise_gate = nn.ModuleList(Up(under, c) for under, c in zip(below, widths))
        self.in_gate = nn.ModuleList(nn.Linear(c, c) for c in widths)
        self.skip = nn.ModuleList(CrossGating(*level) for level in levels)
        self.up = nn.ModuleList(Up(under, c) for under, c in zip(below, widths))
        self.join_up = nn.ModuleList(nn.Linear(c, c, bias=False) for c in widths)
        self.join_skips = nn.ModuleList(JoinLevels(widths, (2, 1, 0), i) for i in range(3))
        self.decoder = nn.ModuleList(Blocks(*level, ConvBlock) for level in levels)
        self.attention = nn.ModuleList(SupervisedAttention(c) for c in widths if not last)
        self.output = Conv(widths[0], 3) if last else None

    def forward(self, images: list[Tensor], before: tuple[list[Tensor], ...] | None) -> tuple[list[Tensor], ...] | Tensor:
        """images: the picture at 1, 1/2, 1/4. before: what the stage before gave: features of its attention, its encoder and its
        decoder, three levels each, fine to coarse. Returns the same of this stage; the last one the residual (N, H, W, 3)."""
        attended, encoded, decoded = before or ([], [], [])
        scales = [conv(image) for conv, image in zip(self.input, images)]
        scales = [fuse(x, y) for fuse, x, y in zip(self.fuse_input, scales, attended)] or scales

        x, bridges = scales[0], []                           # encoder
        for i in range(3):
            x = self.encoder[i](self.join[i](x) if i == 0 else self.join[i](x, scales[i]))
            if before:
                x = self.fuse_encoder[i](x, encoded[i] + decoded[i])
            bridges.append(x)
            x = self.down[i](x)

        for project, blocks in zip(self.bottleneck_in, self.bottleneck):
            x = blocks(project(x))

        gate, skips = x, []                                  # skips, coarse to fine
        for i in (2, 1, 0):
            skip, gate = self.skip[i](self.bridge[i](bridges), self.in_gate[i](self.raise_gate[i](gate)))
            skips.append(skip)

        decoded = []                                         # decoder, coarse to fine
        for i in (2, 1, 0):
            x = self.decoder[i](self.join_up[i](self.up[i](x)) + self.join_skips[i](skips))
            decoded.insert(0, x)
        if self.output is not None:
            return self.output(x)
        return [attend(x, image) for attend, x, image in zip(self.attention, decoded, images)], bridges, decoded


class Maxim(nn.Module):
    """(N, 3, H, W) in [0, 1], H and W multiples of 64 -> the same, deblurred, float32, not clamped."""

    def __init__(self, widths: Sequence[int] = WIDTHS):
        super().__init__()
        self.stages = nn.ModuleList(Stage(widths, i == 0, i == STAGES - 1) for i in range(STAGES))

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.stages[0].input[0].weight.dtype

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        rows = image.permute(0, 2, 3, 1).to(self.dtype).contiguous()
        images = [rows, *(rows[:, s // 2::s, s // 2::s].contiguous() for s in (2, 4))]
        state = None
        for stage in self.stages:
            state = stage(images, state)
        return image.float() + state.permute(0, 3, 1, 2).float()
