"""The losses of every stage, as plain functions over tensors."""
from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vdd_model.diffusion.schedule import LOG_STD_RANGE


def v_loss(v_hat: Tensor, v: Tensor) -> Tensor:
    """Paper eq. 3, ||v - v_hat||^2, divided by the number of elements of v. Both (B, C, F, h, w)."""
    return F.mse_loss(v_hat.float(), v.float())


def coherence_loss(v_hat: Tensor, v: Tensor) -> Tensor:
    """Paper eq. 4, sum_j ||(v_{j+1} - v_j) - (v_hat_{j+1} - v_hat_j)||^2 over frames j = axis 2.

    Divided by the number of elements of v, as eq. 3 is, so that the weight between the two is the paper's.
    """
    error = v_hat.float() - v.float()
    return error.diff(dim=2).square().sum() / error.numel()


def gaussian_nll(mean: Tensor, log_std: Tensor, x: Tensor) -> Tensor:
    """Negative log likelihood of x under N(mean, std^2), mean over elements, without its constant. All (B, C, F, h, w)."""
    log_std = log_std.float().clamp(*LOG_STD_RANGE)
    return (0.5 * ((x.float() - mean.float()) * (-log_std).exp()).square() + log_std).mean()


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


def texture_loss(a: Tensor, b: Tensor, window: int = 8, floor: float = 0.01) -> Tensor:
    """How much detail there is, not where: per clip (B,) the mean L1 of its local strength in a and b, both (B, C, F, H, W).

    Strength is the root mean square, in windows of `window` pixels, of differences along rows, columns and both, in the picture and at half
    its size: a pattern of one direction or one frequency, such as a grid, cannot stand for all.
    """
    def strengths(x: Tensor) -> list[Tensor]:
        """For each of two scales and three kinds of differences, (B, C F, ...)."""
        x, found = x.float().flatten(1, 2), []
        for picture in (x, F.avg_pool2d(x, 2)):
            rows, columns = picture.diff(dim=-1), picture.diff(dim=-2)
            for detail in (rows, columns, rows.diff(dim=-2)):
                side = min(window, *detail.shape[-2:])
                found.append((F.avg_pool2d(detail.square(), side, max(1, side // 2)) + floor**2).sqrt())
        return found

    errors = [(p - q).abs().mean(dim=(1, 2, 3)) for p, q in zip(strengths(a), strengths(b))]
    return sum(errors) / len(errors)


def fft_loss(a: Tensor, b: Tensor) -> Tensor:
    """L1 of the orthonormal spectra over the last two axes (real and imaginary parts)."""
    return torch.view_as_real(torch.fft.rfft2(a.float() - b.float(), norm="ortho")).abs().mean()


def frame_difference_loss(a: Tensor, b: Tensor) -> Tensor:
    """L1 of differences of neighbouring frames, (B, C, F, H, W): flicker. 0 for a single frame."""
    error = (a.float() - b.float()).diff(dim=2)
    return error.abs().mean() if error.numel() else error.sum()
