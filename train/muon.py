"""Muon: AdamW in which matrices take orthogonalised steps."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_QUINTIC = (3.4445, -4.7750, 2.0315)      # Newton-Schulz: brings singular values from (0, 1] to about 1 in few steps (Jordan et al.)
_ITERATIONS = 5
_MOMENTUM = 0.95
_SMALLEST = 16                            # sides of a matrix that has a spectrum worth speaking of


class Muon(torch.optim.AdamW):
    """Matrices step by lr * 0.2 * sqrt(longer side) * (their momentum with all singular values near 1); the rest by AdamW.

    Muon (K. Jordan et al. 2024, kellerjordan.github.io/posts/muon), scaled to AdamW's step as in arXiv 2502.16982, so that both share one
    learning rate. A convolution's weight is the matrix (out, in x kernel). The momentum is kept as AdamW's `exp_avg`; a matrix has no
    `exp_avg_sq`. `dtype` is what the steps are orthogonalised in: bfloat16 takes half the time where the processor computes in it.
    (torch.optim.Muon, from torch 2.9 on, takes parameters of two axes only.)
    """

    def __init__(self, parameters: Sequence[Tensor], *, dtype: torch.dtype = torch.float32, **adamw):
        self.dtype = dtype
        matrices = [p for p in parameters if is_matrix(p)]
        rest = [p for p in parameters if not is_matrix(p)]
        groups = [{"params": params, "matrices": which} for params, which in ((matrices, True), (rest, False)) if params]
        super().__init__(groups, **adamw)

    @torch.no_grad()
    def step(self, closure=None):
        """One step. The matrices' gradients are None afterwards."""
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[Tensor]] = {}
            for p in group["params"] if group["matrices"] else ():
                if p.grad is not None:
                    alike.setdefault(tuple(p.shape), []).append(p)
            for parameters in alike.values():
                self._step_matrices(parameters, group["lr"], group["weight_decay"])
        return super().step(closure)

    def _step_matrices(self, parameters: list[Tensor], lr: float, weight_decay: float) -> None:
        """Parameters of one shape, together: few kernels for many small matrices."""
        gradients = [p.grad for p in parameters]
        for p in parameters:
            if "exp_avg" not in self.state[p]:
                self.state[p] |= {"step": torch.zeros(()), "exp_avg": torch.zeros_like(p)}         # AdamW reads back no state without steps
        momenta = [self.state[p]["exp_avg"] for p in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - _MOMENTUM)
        nesterov = torch.stack(torch._foreach_lerp(gradients, momenta, _MOMENTUM)).flatten(2)
        steps = orthogonalised(nesterov, self.dtype).view(-1, *parameters[0].shape)
        torch._foreach_mul_(parameters, 1 - lr * weight_decay)
        torch._foreach_add_(parameters, list(steps), alpha=-0.2 * lr * max(nesterov.shape[1:])**0.5)
        for p in parameters:
            p.grad = None                                      # AdamW's own step passes it over


def is_matrix(p: Tensor) -> bool:
    """Whether Muon steps p: weights of hidden layers; not norms, biases, depthwise kernels, nor narrow outputs."""
    return p.ndim >= 2 and p.shape[0] >= _SMALLEST and p.shape[1] > 1 and p[0].numel() >= _SMALLEST


def orthogonalised(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """U V' of every U S V' in matrices (..., R, C), to about 0.7 ... 1.2 in the singular values; float32, computed in `dtype`."""
    a, b, c = _QUINTIC
    x = matrices.float()
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.mT if tall else x).float()
