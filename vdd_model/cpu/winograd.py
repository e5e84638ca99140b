"""Convolutions of three taps with fewer multiplications, as matrix products.

Winograd's minimal filtering makes two neighbouring outputs of three taps from four products instead of six, along every axis that the
kernel has: 3 x 3 then takes 16 products instead of 36. Sums and differences of neighbouring inputs go into the products; sums and
differences of these are the outputs. In an image enlarged two times (nearest neighbour) two of every four neighbours are equal: three
products are left, and the enlarged image never exists.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_POSITIONS = 4096               # positions handled at a time: what lies between input and output then stays in the cache


def filters(weight: Tensor, enlarged: bool = False) -> list[Tensor]:
    """The products' matrices (out, in) for a kernel (out, in, 3, 3) or (out, in, 3, 1), in the order that `convolve` takes them."""
    made = [weight.permute(2, 3, 0, 1).to(torch.float64, memory_format=torch.contiguous_format)]
    for _ in range(1 if weight.shape[3] == 1 else 2):
        made = [each for kernel in made for each in _filters(*kernel, enlarged)]
    return [(kernel if kernel.ndim == 2 else kernel[0]).to(weight.dtype) for kernel in made]


def _filters(first: Tensor, middle: Tensor, last: Tensor, enlarged: bool) -> tuple[Tensor, ...]:
    total = first + middle + last
    return (first, total, last) if enlarged else (first, total / 2, total / 2 - middle, last)


def kernel(matrices: Sequence[Tensor], enlarged: bool = False) -> Tensor:
    """Inverse of `filters`: a kernel (out, in, 3, 3), or (out, in, 3, 1) of three or four matrices, its middle taps rounded."""
    size = 3 if enlarged else 4

    def taps(made: Sequence[Tensor]) -> Tensor:
        """(3, ...) from what stands for them along one axis."""
        first, last = made[0], made[-1]
        return torch.stack([first, made[1] - first - last if enlarged else made[1] - made[2], last])
    made = [matrix.double() for matrix in matrices]
    if len(made) > size:
        made = [taps(made[i:i + size]) for i in range(0, len(made), size)]
        return taps(made).permute(2, 3, 0, 1).to(matrices[0].dtype)
    return taps(made).permute(1, 2, 0)[..., None].to(matrices[0].dtype)


def convolve(x: Tensor, products: Sequence[Callable[..., Tensor]], out_channels: int, axes: tuple[int, ...], *,
             enlarged: bool = False, add: Tensor | None = None) -> Tensor:
    """Convolution of x (N, H, W, C) along `axes`, (1, 2) or (1,), with zeros around it; plus `add`, of the output's shape.

    products: functions (x, add) -> (..., out_channels), the multiplications of rows (..., C) by the matrices of `filters`, plus `add`
    (a tensor or None); the one that is second along each axis adds the bias. enlarged: convolve x enlarged two times, along both axes.
    Returns (N, H, W, out_channels), or 2H x 2W. Inference only.
    """
    n, *sides = x.shape[:3]
    odd = [side % 2 if axis in axes and not enlarged else 0 for axis, side in zip((1, 2), sides)]
    scale = 2 if enlarged else 1
    height, width = (side * scale for side in sides)
    out = x.new_empty(n, height + odd[0], width + odd[1], out_channels)
    margins = (0, 0, *((1, 1 + odd[1]) if 2 in axes else (0, 0)), 1, 1 + odd[0])
    axis = 0 if 2 in axes else 2                                        # chunks along an axis that the kernel leaves alone
    length = x.shape[axis]
    chunk = max(1, _POSITIONS * length // (n * sides[0] * sides[1]))
    for start in range(0, length, chunk):
        part = slice(start, start + chunk)
        at = (part,) if axis == 0 else (slice(None), slice(None), part)
        _convolve(F.pad(x[at], margins), products, axes, enlarged, out=out[at])
        if add is not None:
            out[at][:, :height, :width].add_(add[at])
    return out[:, :height, :width].contiguous()


def _convolve(x: Tensor, products: Sequence[Callable[..., Tensor]], axes: tuple[int, ...], enlarged: bool,
              add: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """One axis after the other. x has its margins; `out` takes the result where it is given."""
    if not axes:
        return products[0](x, add)
    axis, *rest = axes
    if enlarged:
        before, here, after = x.unfold(axis, 3, 1).unbind(-1)
        inputs = (before - here, here, after - here)
    else:
        a, b, c, d = x.unfold(axis, 4, 2).unbind(-1)
        inputs = (a - c, b + c, c - b, d - b)
    share = len(products) // len(inputs)

    def product(i: int, plus: Tensor | None = None) -> Tensor:
        """Product i along this axis, convolved along those that are left, plus `plus`."""
        return _convolve(inputs[i], products[i * share:(i + 1) * share], tuple(rest), enlarged, plus)
    if enlarged:
        even = odd = product(1)
    else:
        m1, m2 = product(1), product(2)
        even, odd = m1 + m2, m1.sub_(m2)
    even, odd = product(0, even), product(len(inputs) - 1, odd)         # the sums are made inside of the last products
    if out is None:
        out = even.new_empty([size * 2 if i == axis else size for i, size in enumerate(even.shape)])
    places = out.unflatten(axis, (-1, 2)).unbind(axis + 1)
    extra = (None, None) if add is None else add.unflatten(axis, (-1, 2)).unbind(axis + 1)
    for place, value, more in zip(places, (even, odd), extra):
        place.copy_(value) if more is None else torch.add(value, more, out=place)
    return out
