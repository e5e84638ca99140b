"""What is promised of results in floating point, on every processor and in whatever order it sums.

Each operation errs by at most u relative to its result, the unit roundoff of the type, and errors of n operations add as a random walk
does: the relative error of a whole tensor, in the 2-norm and against the float64 result, is at most u sqrt(n). (Higham and Mary, "A new
approach to probabilistic rounding error analysis", 2019; the worst case, u n, is met by nothing that one computes.)
"""
import torch
from torch import Tensor, nn


def operations(model: nn.Module) -> int:
    """Products that a number of the output passes through one after the other: the sum of the layers' inputs per output."""
    return sum(layer.weight[0].numel() for layer in layers(model))


def layers(model: nn.Module) -> list[nn.Module]:
    """All with a weight of their own that they multiply by."""
    return [layer for layer in model.modules() if isinstance(getattr(layer, "weight", None), Tensor) and layer.weight.ndim > 1]


def error(found: Tensor, exact: Tensor, count: int, dtype: torch.dtype | None = None) -> float:
    """The relative error of `found` in units of what `count` operations in `dtype` (found's own) may cost: at most 1 is kept."""
    u = torch.finfo(dtype or found.dtype).eps / 2
    return ((found.double() - exact.double()).norm() / exact.double().norm() / (u * count**0.5)).item()
