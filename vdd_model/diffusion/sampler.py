"""Samplers as plain functions over a v-model: `v = v_model(x, t)` with x (B, ...) and t (B,) integers. They know nothing of the network."""
from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import UserError
from ..options import VGEN_MIN_STEPS
from .schedule import Schedule

VModel = Callable[[Tensor, Tensor], Tensor]


def timesteps(steps: int, num_timesteps: int = 1000, spacing: str = "trailing") -> list[int]:
    """Descending timesteps. "trailing": so many, evenly spaced and starting at the last one (Lin et al. 2023); "vgen": the official
    sampler's, from T + 1 - stride to 1, of which there can be more (30 -> 31). Raises ValueError for less than 1 or more than T steps,
    UserError for fewer than VGEN_MIN_STEPS with "vgen": with one step the only timestep would be 1, where pure noise passes for the result.
    """
    if not 1 <= steps <= num_timesteps:
        raise ValueError(f"steps must be 1 to {num_timesteps}, not {steps}")
    if spacing == "trailing":
        return [round(num_timesteps * (steps - i) / steps) - 1 for i in range(steps)]
    if steps < VGEN_MIN_STEPS:
        raise UserError(f"the spacing 'vgen' needs at least {VGEN_MIN_STEPS} steps, not {steps}: with fewer it starts where pure noise "
                        "passes for a nearly finished picture; take more steps, or the spacing 'trailing'")
    return sorted({min(t, num_timesteps - 1) for t in range(1, num_timesteps + 1, num_timesteps // steps)}, reverse=True)


def guided(conditional: VModel, unconditional: VModel, scale: float, rescale: float = 0.0,
           interval: tuple[float, float] = (0.0, 1.0), num_timesteps: int = 1000) -> VModel:
    """Classifier-free guidance: v = v_u + scale (v_c - v_u). At scale 1 the unconditional branch is never run.

    rescale: 0..1, how far the standard deviation of each sample is brought back to v_c's (Lin et al. 2023, 3.4).
    interval: guide only where lo <= t / (T - 1) <= hi (Kynkaanniemi et al. 2024); elsewhere v_c alone.
    """
    if scale == 1.0:
        return conditional
    low, high = (edge * (num_timesteps - 1) for edge in interval)
    everywhere = low <= 0 and high >= num_timesteps - 1

    def v_model(x: Tensor, t: Tensor) -> Tensor:
        """Guided v, of x's shape."""
        inside = everywhere or low <= int(t[0]) <= high      # reading t waits for a GPU: only where needed, before it has new work
        v_c = conditional(x, t)
        if not inside:
            return v_c
        v_u = unconditional(x, t)
        v = v_u + scale * (v_c - v_u)
        if rescale:
            ratio = v_c.flatten(1).std(dim=1) / v.flatten(1).std(dim=1).clamp_min(1e-12)
            v = v * (rescale * ratio + (1 - rescale)).view(-1, *[1] * (v.ndim - 1))
        return v

    return v_model


@torch.no_grad()
def ddim(v_model: VModel, x: Tensor, schedule: Schedule, timesteps: Sequence[int], *, eta: float = 0.0,
         step_noise: Callable[[int], Tensor] | None = None, callback: Callable[[int, int, Tensor, Tensor], None] | None = None,
         final_x0: bool = True) -> Tensor:
    """DDIM (Song et al. 2021) from x at timesteps[0] down to clean latents.

    x: (B, ...), noise at timesteps[0]; the arithmetic is done in its dtype.
    timesteps: descending. eta: 0 deterministic .. 1 ancestral. step_noise(i) -> noise of x's shape for step i, needed when eta > 0.
    callback(i, t, x, x0) is called after each step with the new x and the estimate of the clean latents; what it raises passes through.
    final_x0: the last step ends exactly on x0. False stops at timestep 0, with a little noise left, as the official sampler does.
    """
    if eta and step_noise is None:
        raise ValueError("eta > 0 needs step_noise")
    alpha_bar = schedule.alpha_bar.tolist()
    for i, t in enumerate(timesteps):
        last = i + 1 == len(timesteps)
        alpha_bar_next = alpha_bar[timesteps[i + 1]] if not last else 1.0 if final_x0 else alpha_bar[0]
        a, s = alpha_bar[t] ** 0.5, (1 - alpha_bar[t]) ** 0.5
        v = v_model(x, torch.full((len(x),), t, dtype=torch.long, device=x.device))
        x0, eps = a * x - s * v, s * x + a * v
        # sigma of eq. 16 as eta * sqrt((1 - next) / (1 - now)) * sqrt(1 - now / next); no division by sqrt(alpha_bar_t)
        variance = eta**2 * max(0.0, (1 - alpha_bar_next) / (1 - alpha_bar[t]) * (1 - alpha_bar[t] / alpha_bar_next))
        x = x0 if alpha_bar_next == 1.0 else alpha_bar_next**0.5 * x0 + max(0.0, 1 - alpha_bar_next - variance) ** 0.5 * eps
        if variance and t > 0:
            x = x + variance**0.5 * step_noise(i)
        if callback is not None:
            callback(i, t, x, x0)
    return x
