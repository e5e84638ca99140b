"""Wavelet colour transfer: low frequencies from one picture, high frequencies from another."""
from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

LEVELS, LEAST_LEVELS = 8, 5
REDUCED_LEVELS = 2      # these levels are done together by one antialiased reduction to 1/4 of the size


def wavelet_color_transfer(output: Tensor, reference: Tensor, levels: int = LEVELS) -> Tensor:
    """`output` with the low frequencies of `reference`, both (N, C, H, W): details from one, colour and brightness from the other.

    The low frequencies are the coarsest approximation of a stationary (a trous) wavelet transform of `levels` >= 2 levels:
    level i convolves rows and columns with [1, 2, 1] / 4, taps 2^i apart; with 8 levels it holds what is coarser than about
    250 pixels, which no blur reaches: over 30 pixels blurred and sharp frames differ in brightness by right. It is so smooth
    that a quarter of the size holds it, which makes it nearly free.
    """
    if levels < REDUCED_LEVELS:
        raise ValueError(f"levels must be at least {REDUCED_LEVELS}, not {levels}")
    difference = _reduce(reference) - _reduce(output)           # the transform is linear: one of the difference is enough
    for level in range(levels - REDUCED_LEVELS):
        difference = _smooth(difference, 2**level)
    return F.interpolate(difference, size=output.shape[-2:], mode="bilinear", align_corners=False).add_(output)


def levels_for(tile: int) -> int:
    """Levels for frames that were computed in tiles of this many pixels (0: whole). Tiles disagree a little in brightness, so what is
    coarser than a third of a tile is taken from the reference; never what is finer than about 30 pixels."""
    return min(max(int(math.log2(tile / 3)), LEAST_LEVELS), LEVELS) if tile else LEVELS


def _reduce(x: Tensor) -> Tensor:
    size = [-(-n // 2**REDUCED_LEVELS) for n in x.shape[-2:]]
    return F.interpolate(x, size=size, mode="bilinear", antialias=True, align_corners=False)


def _smooth(x: Tensor, step: int) -> Tensor:
    """[1, 2, 1] / 4 along columns and rows, taps `step` apart, borders repeating the last pixel."""
    height, width = x.shape[-2:]
    padded = F.pad(x, (0, 0, step, step), mode="replicate")
    x = 0.5 * x + 0.25 * (padded[..., :height, :] + padded[..., 2 * step:, :])
    padded = F.pad(x, (step, step, 0, 0), mode="replicate")
    return 0.5 * x + 0.25 * (padded[..., :width] + padded[..., 2 * step:])
