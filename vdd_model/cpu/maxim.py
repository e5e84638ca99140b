"""The prior's network on a CPU: its blocks go through oneDNN, a strip of the picture at a time, which stays in the cache.

A product over the cells of a grid, or over the pixels of blocks, wants the picture in another order. Here a strip is brought into that
order once, everything from the first norm to the last product is done on it there, and its result goes back. The norms before products
keep of their arithmetic what depends on a position, one factor; the mean and the channels' weights are in the products' matrices.
The result agrees with the plain layers' to rounding.
"""
from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn

from ..networks import maxim
from .norms import normalized, scaled
from .onednn import _onednn, _product, computes, hooked

STRIP_BYTES = 2**21             # of one tensor of a strip; about ten are alive at a time


def _plainly(module: nn.Module, x: Tensor) -> bool:
    """Whether the module's own layers are to be called for x."""
    return not computes(next(module.parameters()), x) or any(map(hooked, list(module.modules())[1:]))


def _behind(norm: nn.LayerNorm, layer: nn.Linear) -> tuple[Tensor, Tensor]:
    """Weight (out, in) and bias of a layer behind `scaled` that equals norm and layer."""
    weight = layer.weight.double() * norm.weight
    weight = (weight - weight.mean(1, keepdim=True)) * norm.weight.numel() ** 0.5
    bias = layer.bias + layer.weight.double() @ norm.bias.double()
    return _onednn._reorder_linear_weight(weight.to(layer.weight.dtype)), bias.to(layer.weight.dtype)


def _plain(layer: nn.Linear) -> tuple[Tensor, Tensor | None]:
    return _onednn._reorder_linear_weight(layer.weight.detach()), layer.bias


def _gelu(layer: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
    return _onednn._linear_pointwise(x, *layer, "gelu", [], "tanh")


class _Mixed:
    """A dense layer over the positions (p q) of rows (p q, n, C), plus `offset`."""

    def __init__(self, mix: maxim.Mix, offset: float = 0.0):
        self.weight, self.bias = mix.weight.detach(), (mix.bias.detach() + offset)[:, None]

    def __call__(self, rows: Tensor) -> Tensor:
        mixed = _product(rows.flatten(1).mT, None, self.weight)               # from the left: the rows stand where a weight does
        return mixed.add_(self.bias).view_as(rows)


class _Gated:
    """A `GatedMlp` of rows (p q, n, C)."""

    def __init__(self, mlp: maxim.GatedMlp):
        self.to_u, self.to_v, self.out = _behind(mlp.norm, mlp.to_u), _behind(mlp.norm, mlp.to_v), _plain(mlp.out)
        self.norm, self.mix = mlp.norm_v, _Mixed(mlp.mix, 1.0)

    def __call__(self, x: Tensor) -> Tensor:
        y = scaled(x, maxim.EPS)
        v = normalized(_gelu(self.to_v, y), maxim.EPS, self.norm.weight, self.norm.bias)
        return _product(*self.out, _gelu(self.to_u, y).mul_(self.mix(v)), x)


class _SplitHead:
    """`forward` of what sends half of its channels over the grid and half over the blocks: a `MultiAxisMlp` gates each half and adds the
    input, `GateWeights` only mix it."""

    def __init__(self, module: maxim.MultiAxisMlp | maxim.GateWeights):
        self.module, self.adds = module, isinstance(module, maxim.MultiAxisMlp)
        self.halves = []
        for each, enter, leave in zip((module.grid, module.block), (module.to_grid, module.to_block), module.out.parts):
            mix = each.mix if self.adds else each
            with torch.no_grad():
                inner = _Gated(each) if self.adds else _Mixed(mix)
                self.halves.append((mix.axis, mix.side, _behind(module.norm, enter), inner, _plain(leave)))

    def __call__(self, x: Tensor) -> Tensor:
        """The module's output for x (N, H, W, C)."""
        if _plainly(self.module, x):
            return type(self.module).forward(self.module, x)
        out = torch.empty_like(x)
        for image, result in zip(x, out):
            for axis, side, enter, inner, leave in self.halves:
                for given, made in zip(_strips(image, axis, side), _strips(result, axis, side)):
                    rows = given.reshape(side**2, -1, x.shape[-1])
                    h = inner(_gelu(enter, scaled(rows, maxim.EPS)))
                    if axis == "grid":
                        made.copy_(_product(*leave, h, rows if self.adds else None).view(made.shape))
                    else:
                        made.add_(_product(*leave, h).view(made.shape))
        return out


class _CrossGating:
    """`forward` of cross-gating."""

    def __init__(self, module: maxim.CrossGating):
        self.module = module
        with torch.no_grad():
            self.in_x, self.in_y = _behind(module.norm_x, module.in_x), _behind(module.norm_y, module.in_y)
            self.out_x, self.out_y = _plain(module.out_x), _plain(module.out_y)

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The module's output for x, y (N, H, W, C)."""
        module = self.module
        if _plainly(module, x):
            return type(module).forward(module, x, y)
        a, b = _in_pieces(self._enter, x, y)
        return _in_pieces(self._leave, x, y, a, b, module.gate_x(a), module.gate_y(b))

    def _enter(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return _gelu(self.in_x, scaled(x, maxim.EPS)), _gelu(self.in_y, scaled(y, maxim.EPS))

    def _leave(self, x: Tensor, y: Tensor, a: Tensor, b: Tensor, from_x: Tensor, from_y: Tensor) -> tuple[Tensor, Tensor]:
        y = _product(*self.out_y, b * from_x, y)
        return _product(*self.out_x, a * from_y, x + y), y


def _strips(image: Tensor, axis: str, side: int) -> tuple[Tensor, ...]:
    """Strips of an image (H, W, C), as views (p, q, h, w, C): `Mix` makes one of all that differ in p and q."""
    whole = rearrange(image, f"{maxim.PATTERNS[axis]} -> p q h w c", p=side, q=side)
    size = side**2 * whole[0, 0, 0].numel() * image.element_size()
    return whole.split(max(1, STRIP_BYTES // size), dim=2)


def _in_pieces(function: Callable[..., tuple[Tensor, ...]], *given: Tensor) -> tuple[Tensor, ...]:
    """`function` of rows (..., C), some at a time; two results of the first one's shape."""
    out = torch.empty_like(given[0]), torch.empty_like(given[0])
    rows = max(1, STRIP_BYTES // (given[0].shape[-1] * given[0].element_size()))
    for *parts, first, second in zip(*(x.flatten(0, -2).split(rows) for x in (*given, *out))):
        for part, made in zip((first, second), function(*parts)):
            part.copy_(made)
    return out


FORWARDS = {maxim.MultiAxisMlp: _SplitHead, maxim.GateWeights: _SplitHead, maxim.CrossGating: _CrossGating}
