"""Layers fused with what follows them, for inference on a CPU.

There oneDNN is faster than the BLAS behind `torch.nn.Linear`, and adds a residual, gates or applies an activation while the product is
still in registers. `linear`, `geglu` and `conv` are one or two oneDNN calls where that is possible (see `fuses`), else the plain
expression; the two agree to rounding. `pack` keeps the weights in oneDNN's own layout, which saves a copy of them in every call.
"""
from __future__ import annotations

import functools
import os
import platform

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..networks.layers import conv_as, over_frames
from . import winograd

_onednn = torch.ops.mkldnn
_WORTH_PACKING = 1 << 20        # weights in a convolution; a smaller one gains nothing, and its best layout changes with the image's size
_WORTH_FILTERING = 1 << 18      # weights in a convolution that Winograd's filtering makes faster: with fewer, its sums cost what it saves


@functools.cache
def supports(dtype: torch.dtype) -> bool:
    """Whether oneDNN computes in this type on this processor (x86, float32 or bfloat16)."""
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and _onednn._is_mkldnn_bf16_supported())


@functools.cache
def in_tiles(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies this type in tiles (AMX): many times as fast, so that all between the products counts more."""
    asked = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()               # what oneDNN is to make do with
    able = asked in ("ALL", "DEFAULT") or "AMX" in asked
    return dtype == torch.bfloat16 and supports(dtype) and able and getattr(torch.cpu, "_is_amx_tile_supported", bool)()


class Fused:
    """What `accelerate` gives the layers of torch.nn beside their parameters."""

    pieces = 1                                # parts that the outputs are computed in (2 for a gated layer)
    enlarges = False                          # a convolution whose input is enlarged two times before
    packed: tuple[Tensor, ...] = ()           # what `pack` made of the weight: its pieces, or Winograd's matrices, in oneDNN's layout
    weight_shape: torch.Size                  # of the plain weight, once packed

    def matrix(self) -> Tensor:
        """The weight: (out, in) of a linear layer, (out, in, kh, kw) of a convolution; without a last axis of 1 that only its key has."""
        return self.weight[..., 0] if self.weight.ndim in (3, 5) else self.weight


class Linear(Fused, nn.Linear):
    """`torch.nn.Linear`, through oneDNN where that is faster."""

    def forward(self, x: Tensor) -> Tensor:
        return _linear(self, x) if fuses(self, x) else super().forward(x)


class PointwiseConv(Fused, conv_as(F.linear, nn.Conv1d)):
    """A convolution of kernel 1 over rows, as `Linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return _linear(self, x) if fuses(self, x) else super().forward(x)


class Conv2d(Fused, nn.Conv2d):
    """`torch.nn.Conv2d`; once packed, its input should be channels-last (and not enlarged yet, where the layer `enlarges`)."""

    def forward(self, x: Tensor) -> Tensor:
        return _conv(self, x) if self.packed and fuses(self, x) else super().forward(x)


class FrameConv(Fused, conv_as(over_frames, nn.Conv3d)):
    """A convolution over frames, as `Conv2d`."""

    def forward(self, x: Tensor) -> Tensor:
        return _conv(self, x) if self.packed and fuses(self, x) else super().forward(x)


LAYERS = {nn.Linear: Linear, conv_as(F.linear, nn.Conv1d): PointwiseConv, nn.Conv2d: Conv2d, conv_as(over_frames, nn.Conv3d): FrameConv}


def hooked(module: nn.Module) -> bool:
    """Whether somebody listens to this module: then it is called as it is, without a sum of another's in it."""
    return bool(module._forward_hooks or module._forward_pre_hooks or torch.nn.modules.module._has_any_global_hook())


def computes(weight: Tensor, x: Tensor) -> bool:
    """Whether a product of these two goes through oneDNN: on an x86 CPU, in float32 or bfloat16, for inference."""
    return (not torch.compiler.is_compiling() and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
            and x.device.type == "cpu" and weight.device.type == "cpu" and x.dtype == weight.dtype and supports(x.dtype))


def fuses(layer: nn.Module, x: Tensor) -> bool:
    """Whether `layer` runs on x through oneDNN: an accelerated layer, on an x86 CPU, in float32 or bfloat16, for inference.

    Raises RuntimeError when it does not although it is packed (its plain weight is gone).
    """
    if not isinstance(layer, Fused):
        return False
    able = computes(layer.weight, x)
    if layer.packed and not able:
        raise RuntimeError(f"this model is packed for inference on a CPU in {layer.weight.dtype}: "
                           "it runs there, without gradients, autocast and torch.compile, only")
    return able


def pack(model: nn.Module) -> nn.Module:
    """Put the weights of all accelerated layers into oneDNN's layout, in place of the plain ones.

    Float32 or bfloat16 models on a CPU; what cannot be packed or would gain nothing (small convolutions) stays as it is. No more memory
    than before, but for the matrices of Winograd's filtering, which take a third more than a temporal kernel and 7/9 more than a 3 x 3
    one. Afterwards the model can only infer: not be saved, moved or trained, until `unpack`. Returns the model.
    """
    for layer in model.modules():
        if not isinstance(layer, Fused) or layer.packed or layer.weight.device.type != "cpu" or not supports(layer.weight.dtype):
            continue
        with torch.no_grad():
            layer.packed, layer.weight_shape = _pack(layer, layer.matrix()), layer.weight.shape
        if layer.packed:
            layer.weight = nn.Parameter(layer.weight.new_empty(0), requires_grad=False)
    return model


def unpack(model: nn.Module) -> nn.Module:
    """Give the packed layers their plain weights back: exactly, but for those of Winograd's filtering, whose middle taps are rounded once
    more. Returns the model."""
    for layer in model.modules():
        if isinstance(layer, Fused) and layer.packed:
            weights = [weight.to_dense() for weight in layer.packed]
            filtered = len(weights) > 1 and len(layer.weight_shape) > 3
            whole = winograd.kernel(weights, layer.enlarges) if filtered else torch.cat(weights)
            layer.weight, layer.packed = nn.Parameter(whole.reshape(layer.weight_shape), requires_grad=False), ()
    return model


def _pack(layer: nn.Module, weight: Tensor) -> tuple[Tensor, ...]:
    if weight.ndim == 2:
        matrices = weight.chunk(layer.pieces)
    elif _is_pointwise(layer):
        matrices = [weight[:, :, 0, 0]]
    elif _can_filter(layer) and _worth_filtering(layer):
        matrices = winograd.filters(weight, layer.enlarges)
    elif weight.numel() < (_WORTH_FILTERING if in_tiles(weight.dtype) else _WORTH_PACKING) or layer.out_channels % 64:
        return ()
    else:
        return (_onednn._reorder_convolution_weight(weight, *_geometry(layer), layer.groups),)
    return tuple(_onednn._reorder_linear_weight(matrix.contiguous()) for matrix in matrices)


def _is_pointwise(layer: nn.Module) -> bool:
    return layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.padding == (0, 0) and layer.groups == 1


def _axes(layer: nn.Module) -> tuple[int, ...]:
    """That a kernel of three taps, or of 3 x 3, has in images (N, H, W, C)."""
    return (1,) if len(layer.kernel_size) == 3 else (1, 2)


def _can_filter(layer: nn.Module) -> bool:
    """Whether `winograd` can do this convolution."""
    kernels = ((3, 3), (1, 1)), ((3, 1, 1), (1, 0, 0))
    return (layer.kernel_size, layer.padding) in kernels and set(layer.stride) == set(layer.dilation) == {1} and layer.groups == 1


def _worth_filtering(layer: nn.Module) -> bool:
    """Whether filtering makes this convolution faster. Products in tiles are so fast that the sums cost more than it saves, but in wide
    layers and where it saves three quarters of the products."""
    dearer = 4 ** len(_axes(layer)) if in_tiles(layer.weight.dtype) and not layer.enlarges else 1
    return layer.weight.numel() >= _WORTH_FILTERING * dearer


def linear(layer: nn.Module, x: Tensor, add: Tensor | None = None) -> Tensor:
    """layer(x) + add, for a linear layer or a pointwise convolution over rows (..., C)."""
    if hooked(layer) or not fuses(layer, x) or (add is not None and add.dtype != x.dtype):
        return layer(x) if add is None else residual(layer(x), add)
    return _linear(layer, x, add)


def _linear(layer: nn.Module, x: Tensor, add: Tensor | None = None) -> Tensor:
    if len(layer.packed) > 1:                                        # a gated layer that somebody listens to
        return torch.cat([_product(weight, bias, x) for weight, bias in zip(layer.packed, layer.bias.chunk(layer.pieces))], -1)
    return _product(layer.packed[0] if layer.packed else layer.matrix(), layer.bias, x, add)


def geglu(layer: nn.Module, x: Tensor) -> Tensor:
    """value * gelu(gate), with (value, gate) the two halves of layer(x)."""
    if not hooked(layer) and fuses(layer, x):
        (value, gate), (value_bias, gate_bias) = layer.packed or layer.weight.chunk(2), layer.bias.chunk(2)
        if not _gelu_pays():
            return F.gelu(_product(gate, gate_bias, x)).mul_(_product(value, value_bias, x))
        gated = _onednn._linear_pointwise(x, gate, gate_bias, "gelu", [], "none")
        return _onednn._linear_pointwise.binary(x, gated, value, value_bias, "mul")
    value, gate = layer(x).chunk(2, dim=-1)
    gate = F.gelu(gate)
    return gate * value if torch.is_grad_enabled() else gate.mul_(value)


@functools.cache
def _gelu_pays() -> bool:
    """Whether oneDNN's GELU inside of a product is faster than PyTorch's behind it: with AVX-512. With AVX2 it takes a fifth longer."""
    return "AVX512" in torch.backends.cpu.get_cpu_capability()


def conv(layer: nn.Module, x: Tensor, add: Tensor | None = None) -> Tensor:
    """layer(x) + add for a convolution; x and add channels-last (N, C, H, W)."""
    if hooked(layer) or not getattr(layer, "packed", ()) or not fuses(layer, x):     # plain weights: oneDNN gains nothing over F.conv2d
        return layer(x) if add is None else residual(layer(x), add)
    return _conv(layer, x, add)


def _conv(layer: nn.Module, x: Tensor, add: Tensor | None = None) -> Tensor:
    if _is_pointwise(layer):
        return _linear(layer, x.permute(0, 2, 3, 1), None if add is None else add.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    if len(layer.packed) > 1:
        return _filtered(layer, x, add)
    if add is None:
        return _onednn._convolution_pointwise(x, layer.packed[0], layer.bias, *_geometry(layer), layer.groups, "none", [], "")
    return _onednn._convolution_pointwise.binary(x, add, layer.packed[0], layer.bias, *_geometry(layer), layer.groups,
                                                 "add", 1.0, None, [], None)


def conv_enlarged(layer: nn.Module, x: Tensor) -> Tensor:
    """layer(x enlarged two times, nearest neighbour) for a convolution with `enlarges` set; x channels-last (N, C, H, W)."""
    if len(getattr(layer, "packed", ())) > 1:
        return layer(x)
    return layer(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _filtered(layer: nn.Module, x: Tensor, add: Tensor | None) -> Tensor:
    axes, points = _axes(layer), 3 if layer.enlarges else 4
    with_bias = 1 if len(axes) == 1 else points + 1
    products = [functools.partial(_product, weight, layer.bias if i == with_bias else None) for i, weight in enumerate(layer.packed)]
    rows = winograd.convolve(x.permute(0, 2, 3, 1), products, layer.out_channels, axes, enlarged=layer.enlarges,
                             add=None if add is None else add.permute(0, 2, 3, 1))
    return rows.permute(0, 3, 1, 2)


def _product(weight: Tensor, bias: Tensor | None, x: Tensor, add: Tensor | None = None) -> Tensor:
    if add is None:
        return _onednn._linear_pointwise(x, weight, bias, "none", [], "")
    return _onednn._linear_pointwise.binary(x, add, weight, bias, "add")


def residual(branch: Tensor, x: Tensor) -> Tensor:
    """`branch + x`, written into `branch` (which nothing else may need) unless a gradient is wanted or the types differ."""
    if torch.is_grad_enabled() or branch.dtype != x.dtype:
        return branch + x
    return branch.add_(x)


def _geometry(layer: nn.Module) -> tuple[list[int], list[int], list[int]]:
    """Padding, stride, dilation of the first two kernel dimensions; a (3, 1, 1) kernel is given to oneDNN as (3, 1)."""
    return list(layer.padding[:2]), list(layer.stride[:2]), list(layer.dilation[:2])
