"""The forward process (paper eq. 1 and 2, in the terms of v): noise schedule, q(x_t | x_0), the v target and what follows from v.

Everything is written with a = sqrt(alpha_bar_t) and s = sqrt(1 - alpha_bar_t), and nothing divides by a, so that all of it
stays finite at the last timestep, where the schedule with zero terminal SNR (Lin et al. 2023) has a = 0:

    x_t = a x0 + s eps        v = a eps - s x0        x0 = a x_t - s v        eps = s x_t + a v
"""
from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import DiffusionConfig

LOG_STD_RANGE = (-5.0, 3.0)     # beyond it an estimate is certain, or says nothing


@dataclass(frozen=True, eq=False)
class Schedule:
    """alpha_bar over the timesteps 0 .. T - 1, (T,), float64. No buffer of the UNet's: `.half()` or `.to(torch.bfloat16)` would cast that,
    and 1 - alpha_bar of the first timesteps would be rounding."""

    alpha_bar: Tensor

    @property
    def num_timesteps(self) -> int:
        """T: timesteps are 0 .. T - 1."""
        return len(self.alpha_bar)

    def to(self, device: torch.device | str) -> Schedule:
        """The table on `device`: looking up timesteps that are there need not wait for it. float32 where it has no float64."""
        return Schedule(self.alpha_bar.to(torch.float32 if torch.device(device).type == "mps" else torch.float64).to(device))

    def at(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """a and s at the timesteps t (B,), each (B, 1, ..., 1) in the dtype and on the device of `like`."""
        alpha_bar = self.alpha_bar[t.to(self.alpha_bar.device)]
        return tuple(x.sqrt().to(like).view(-1, *[1] * (like.ndim - 1)) for x in (alpha_bar, 1 - alpha_bar))


@functools.cache
@torch.inference_mode(False)                     # whoever asks first, training may use it later
def make_schedule(config: DiffusionConfig) -> Schedule:
    """Betas linear in sqrt(beta) (VGen `linear_sd`), by default rescaled so that alpha_bar ends exactly on 0. One object for each
    configuration, on the CPU."""
    betas = torch.linspace(config.beta_start**0.5, config.beta_end**0.5, config.num_timesteps, dtype=torch.float64, device="cpu") ** 2
    alpha_bar = torch.cumprod(1 - betas, dim=0)
    if config.zero_terminal_snr:                 # sqrt(alpha_bar) ends on 0 and keeps its first value (Lin et al., Alg. 1)
        first, last = alpha_bar[0].sqrt(), alpha_bar[-1].sqrt()
        alpha_bar = ((alpha_bar.sqrt() - last) * (first / (first - last))) ** 2
    return Schedule(alpha_bar)


def q_sample(schedule: Schedule, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """A draw of q(x_t | x_0): x0 and noise (B, ...), t (B,) integers."""
    a, s = schedule.at(t, x0)
    return a * x0 + s * noise


def v_target(schedule: Schedule, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """What the network learns to predict: v = a eps - s x0 (Salimans and Ho 2022)."""
    a, s = schedule.at(t, x0)
    return a * noise - s * x0


def x0_from_v(schedule: Schedule, x_t: Tensor, t: Tensor, v: Tensor) -> Tensor:
    """The clean latents that v stands for."""
    a, s = schedule.at(t, x_t)
    return a * x_t - s * v


def precondition(schedule: Schedule, x_t: Tensor, t: Tensor, mean: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Diffusion of what an estimate x0 ~ N(mean, std^2) leaves open, r = x0 - mean, standardised point by point: r_t, v_mean, v_scale,
    with which `v = v_mean + v_scale * network(r_t)`.

    It is the preconditioning of EDM (Karras et al. 2022, table 1) with a std of its own at every point, in the terms of v. All is linear in
    x0: the rest's noisy state is x_t - a mean = a r + s eps, of variance d = a^2 std^2 + s^2, and r_t is that divided by sqrt(d). A network
    that predicts 0 gives the posterior mean x0 = mean + a std^2 / d (x_t - a mean), at t = T - 1 the estimate itself, and samples with as
    much detail as the estimate leaves open. With std = 1: v = v_r - s mean, where v_r = a eps - s r is the rest's own. t may be float
    (rounded); all tensors (B, C, F, h, w), returned in float32.
    """
    t = t.round().long() if t.is_floating_point() else t
    mean, variance = mean.float(), (2 * log_std.float().clamp(*LOG_STD_RANGE)).exp()
    a, s = schedule.at(t, mean)
    rest, d = x_t.float() - a * mean, a**2 * variance + s**2
    return rest * d.rsqrt(), a * s * (1 - variance) / d * rest - s * mean, (variance / d).sqrt()
