"""Wavelet color transfer: where the low frequencies of a result have drifted from the input's, they are brought back."""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cpu.frames import to_float

LEVELS, LEAST_LEVELS = 8, 5
REDUCED_LEVELS = 2      # these levels are done together by one antialiased reduction to 1/4 of the size
# What deblurring itself does to low frequencies: a part of what it does to details, and rounding. Measured with the shipped model on the
# footage and the photographs of `make score`, 99 % of all places lie below 0.2 to 0.4 of the details' change.
EXPLAINED, ROUNDING = 0.3, 0.5 / 255


def wavelet_color_transfer_(output: Tensor, reference: Tensor, levels: int = LEVELS) -> Tensor:
    """Give `output` the low frequencies of `reference` where they have drifted apart, in place, and return it; both (N, C, H, W) in [0, 1],
    the reference also as it is kept (`cpu.frames.compact`).

    Low frequencies are the coarsest approximation of a stationary (a trous) wavelet transform of `levels` >= 2 levels: level i convolves
    rows and columns with [1, 2, 1] / 4, taps 2^i apart; with 8 levels it holds what is coarser than about 250 pixels. It is so smooth
    that a quarter of the size holds it, which makes it nearly free.
    Blurred and sharp frames differ there by right: light is averaged before the sRGB curve, and comes in over the frame's border. That
    difference goes with the contrast of what the blur moved, so up to EXPLAINED of the change of details around (their RMS) nothing is
    taken from the reference, from twice of it on everything.
    """
    drifts, energies = [], []
    for channel in range(output.shape[1]):                      # one at a time: large frames have no room for copies
        change = to_float(reference[:, channel:channel + 1], output) - output[:, channel:channel + 1]
        drifts.append(low_frequencies(change, levels))
        energies.append(low_frequencies(change.square_(), levels) - drifts[-1].square())
    explained = EXPLAINED * torch.cat(energies, dim=1).mean(dim=1, keepdim=True).clamp_(min=0).sqrt_() + ROUNDING
    for channel, drift in enumerate(drifts):
        beyond = (drift.abs() / explained - 1).clamp_(0, 1)
        drift *= beyond.square() * (3 - 2 * beyond)
        output[:, channel:channel + 1] += F.interpolate(drift, size=output.shape[-2:], mode="bilinear", align_corners=False)
    return output


def low_frequencies(x: Tensor, levels: int = LEVELS) -> Tensor:
    """The coarsest approximation of x (N, C, H, W) after `levels` levels, at a quarter of its size; borders repeat the last pixel."""
    size = [-(-n // 2**REDUCED_LEVELS) for n in x.shape[-2:]]
    x = F.interpolate(x, size=size, mode="bilinear", antialias=True, align_corners=False)
    for step in (2**level for level in range(levels - REDUCED_LEVELS)):
        for axis, border, n in zip((2, 3), ((0, 0, step, step), (step, step, 0, 0)), size):
            padded = F.pad(x, border, mode="replicate")
            x = 0.5 * x + 0.25 * (padded.narrow(axis, 0, n) + padded.narrow(axis, 2 * step, n))
    return x


def levels_for(tile: int) -> int:
    """Levels for frames that were computed in tiles of this many pixels (0: whole). Tiles disagree a little in brightness, so what is
    coarser than a third of a tile is taken from the reference; never what is finer than about 30 pixels."""
    return min(max(int(math.log2(tile / 3)), LEAST_LEVELS), LEVELS) if tile else LEVELS
