"""Muon: AdamW in which matrices take orthogonalised steps."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_QUINTIC = (3.4445, -4.7750, 2.0315)      # Newton-Schulz: brings singular values from (0, 1] to about 1 in few steps (Jordan et al.)
_ITERATIONS = 5
_SMALLEST = 16                            # sides of a matrix that has a spectrum worth speaking of


class Muon(torch.optim.AdamW):
    """Matrices step by lr * 0.2 * sqrt(longer side) * (their momentum with all singular values near 1); the rest by AdamW.

    Muon (K. Jordan et al. 2024, kellerjordan.github.io/posts/muon), scaled to AdamW's step as in arXiv 2502.16982, so that both share one
    learning rate. A convolution's weight is the matrix (out, in x kernel). The momentum is kept as AdamW's `exp_avg`; a matrix has no
    `exp_avg_sq`. Needs whole matrices, so not FSDP's parts.
    """

    def __init__(self, parameters: Sequence[Tensor], *, momentum: float = 0.95, **adamw):
        matrices = [p for p in parameters if is_matrix(p)]
        rest = [p for p in parameters if not is_matrix(p)]
        groups = [{"params": params, "matrices": which} for params, which in ((matrices, True), (rest, False)) if params]
        super().__init__(groups, **adamw)
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure=None):
        """One step. The matrices' gradients are None afterwards."""
        for group in self.param_groups:
            for p in group["params"] if group["matrices"] else ():
                if p.grad is None:
                    continue
                momentum = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                momentum.lerp_(p.grad, 1 - self.momentum)
                matrix = p.grad.lerp(momentum, self.momentum).flatten(1)                # Nesterov
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(orthogonalised(matrix).view(p.shape), alpha=0.2 * group["lr"] * max(matrix.shape)**0.5)
                p.grad = None                                                           # AdamW's own step passes it over
        return super().step(closure)


def is_matrix(p: Tensor) -> bool:
    """Whether Muon steps p: weights of hidden layers; not norms, biases, depthwise kernels, nor what makes or reads three colours."""
    return p.ndim >= 2 and p.shape[0] >= _SMALLEST and p.shape[1] > 1 and p[0].numel() >= _SMALLEST


def orthogonalised(matrix: Tensor) -> Tensor:
    """U V' of matrix = U S V' (R, C), to about 0.7 ... 1.2 in the singular values; in float32."""
    a, b, c = _QUINTIC
    x = matrix.float() / (matrix.norm().float() + 1e-7)
    x = x.T if x.shape[0] > x.shape[1] else x
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x
