"""The losses of every stage, as plain functions over tensors."""
from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def v_loss(v_hat: Tensor, v: Tensor) -> Tensor:
    """Paper eq. 3, ||v - v_hat||^2, divided by the number of elements of v. Both (B, C, F, h, w)."""
    return F.mse_loss(v_hat.float(), v.float())


def coherence_loss(v_hat: Tensor, v: Tensor) -> Tensor:
    """Paper eq. 4, sum_j ||(v_{j+1} - v_j) - (v_hat_{j+1} - v_hat_j)||^2 over frames j = axis 2.

    Divided by the number of elements of v, as eq. 3 is, so that the weight between the two is the paper's.
    """
    error = v_hat.float() - v.float()
    return error.diff(dim=2).square().sum() / error.numel()


def kl_loss(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL of N(mean, exp(logvar)) from N(0, 1), mean over elements."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).float().mean()


def charbonnier(a: Tensor, b: Tensor, eps: float = 1e-3) -> Tensor:
    """Mean of sqrt((a - b)^2 + eps^2) - eps: L1 with a smooth bottom."""
    return ((a.float() - b.float()).square() + eps * eps).sqrt().mean() - eps


def psnr_loss(a: Tensor, b: Tensor, floor: float = 1e-3) -> Tensor:
    """Mean over (B, F) of log(MSE + floor): PSNR up to a factor, levelled off above 36 dB (values in [-1, 1]).

    PSNR tables average decibels; an L1 loss spends its gradient on the clips whose blur is too long to help.
    """
    error = (a.float() - b.float()).square().mean(dim=(1, 3, 4))
    return (error + floor).log().mean()


def gradient_loss(a: Tensor, b: Tensor) -> Tensor:
    """L1 of the differences along the last two axes: edges."""
    error = a.float() - b.float()
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


def fft_loss(a: Tensor, b: Tensor) -> Tensor:
    """L1 of the orthonormal spectra over the last two axes (real and imaginary parts)."""
    return torch.view_as_real(torch.fft.rfft2(a.float() - b.float(), norm="ortho")).abs().mean()


def frame_difference_loss(a: Tensor, b: Tensor) -> Tensor:
    """L1 of differences of neighbouring frames, (B, C, F, H, W): flicker. 0 for a single frame."""
    error = (a.float() - b.float()).diff(dim=2)
    return error.abs().mean() if error.numel() else error.sum()
