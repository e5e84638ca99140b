"""The picture path on a CPU: nothing is joined or enlarged before it is multiplied, and the fidelity branch's blocks run a strip of rows
at a time, which stays in the cache between one layer and the next.

Layer after layer over whole frames, a block waits for memory more than it computes. Here its norms' weights become part of the layers
behind them, and its pointwise convolutions are oneDNN's products, gates and sums included; the result agrees with the layers' to rounding.
"""
from __future__ import annotations

from collections.abc import Iterable
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..networks.autoencoder import Upsample
from ..networks.fidelity import FidelityBranch, GatedBlock
from . import maxim
from .norms import normalized
from .onednn import _onednn, _product, hooked, supports

WORTH = 1 << 12                 # positions of a picture of features, times their type's bytes, from which strips save time
PHASES = torch.tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], dtype=torch.float64)     # taps of 3 that see one of two pixels
STRIP_BYTES = 2**22             # of a block's widest tensor, for each thread: all of a strip fits in the cache that the cores share


def in_strips(model: nn.Module) -> nn.Module:
    """Let all fidelity branches, `GatedBlock`s, the decoder's `Upsample` and the prior's blocks, of a float32 or bfloat16 model on a CPU,
    run as said above. Their weights are taken as they are now: the model is for inference from here on. Where oneDNN does not compute in
    the type, nothing changes. Returns the model."""
    for module in model.modules():
        fast = FORWARDS.get(type(module))
        weight = next(module.parameters(), None) if fast else None
        if fast and weight.device.type == "cpu" and supports(weight.dtype):
            module.forward = fast(module)
    return model


def out_of_strips(model: nn.Module) -> nn.Module:
    """Inverse of `in_strips`. Returns the model."""
    for block in model.modules():
        if type(block) in FORWARDS:
            vars(block).pop("forward", None)
    return model


def _plainly(module: nn.Module, x: Tensor, passed_over: Iterable[nn.Module]) -> bool:
    """Whether the module's own layers are to be called for x: for the sake of a hook, too, on one of those that strips pass over."""
    return (x.shape[-2] * x.shape[-1] * x.element_size() < WORTH or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")
            or x.dtype != next(module.parameters()).dtype
            or any(map(hooked, passed_over)))


class _Branch:
    """`forward` of the fidelity branch."""

    def __init__(self, branch: FidelityBranch):
        self.branch = branch

    def __call__(self, decoder_features: list[Tensor], encoder_features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """As the branch's own."""
        branch = self.branch
        if _plainly(branch, decoder_features[-1], (*branch.join, *(branch.join_prior or ()))):      # blocks and head are called
            return type(branch).forward(branch, decoder_features, encoder_features)
        state = None
        for i, (join, blocks, dec, enc) in enumerate(zip(branch.join, branch.levels, decoder_features, reversed(encoder_features))):
            enc, prior = branch.told_apart(i, enc)
            parts = [dec, enc] if state is None else [dec, enc, state]
            weights = [w.contiguous() for w in join.weight[:, :, 0, 0].split([part.shape[1] for part in parts], dim=1)]
            rows = _product(weights[1], None, _rows(parts[1]), _product(weights[0], join.bias, _rows(parts[0])))
            if prior is not None:
                rows = _product(branch.join_prior[i].weight[:, :, 0, 0].contiguous(), None, _rows(prior), rows)
            if state is not None:                              # enlarging comes behind the product, which is the same
                count, height, width, channels = rows.shape
                below = _product(weights[2], None, _rows(state))
                rows.view(count, height // 2, 2, width // 2, 2, channels).add_(below[:, :, None, :, None])
            state = blocks(rows.permute(0, 3, 1, 2))
        return F.pixel_shuffle(branch.head(state), branch.patch_size), state


class _Strips:
    """`forward` of one block."""

    def __init__(self, block: GatedBlock):
        self.block, self.channels, self.eps = block, block.project.in_channels, block.norm1.norm.eps
        with torch.no_grad():
            self.expand = _pack(*_behind(block.norm1.norm, block.expand))
            weight, bias = _behind(block.norm2.norm, block.ff_in)
            self.value, self.gate = (_pack(w, b) for w, b in zip(weight.chunk(2), bias.chunk(2)))
            self.project, self.ff_out = (_pack(layer.weight[:, :, 0, 0], layer.bias) for layer in (block.project, block.ff_out))
            layer = block.depthwise
            self.halo = layer.padding[0]
            self.geometry = list(layer.padding), [1, 1], [1, 1], layer.groups            # padding, stride, dilation, groups
            self.depthwise = _onednn._reorder_convolution_weight(layer.weight, *self.geometry), layer.bias

    def __call__(self, x: Tensor) -> Tensor:
        """The block's output for x (N, C, H, W), channels-last."""
        if _plainly(self.block, x, list(self.block.modules())[1:]):
            return type(self.block).forward(self.block, x)
        images, height, width = _rows(x), *x.shape[2:]
        out, halo = torch.empty_like(images), self.halo
        rows = max(4, halo, torch.get_num_threads() * STRIP_BYTES // (width * 2 * self.channels * x.element_size()))
        together = max(1, rows // height)                      # small images, several in a strip
        for some, result in zip(images.split(together), out.split(together)):
            for start in range(0, height, rows):
                low, stop = max(0, start - halo), min(start + rows, height)
                gated = self._gated(some[:, low:stop + halo])[:, start - low:stop - low]
                result[:, start:stop] = self._rest(gated, some[:, start:stop])
        return out.permute(0, 3, 1, 2)

    def _gated(self, rows: Tensor) -> Tensor:
        """Norm, expansion, depthwise convolution and gate of rows (N, H, W, C)."""
        weight, bias = self.depthwise
        wide = _product(*self.expand, normalized(rows, self.eps)).permute(0, 3, 1, 2)
        h = _onednn._convolution_pointwise(wide, weight, bias, *self.geometry, "none", [], "").permute(0, 2, 3, 1)
        return h[..., :self.channels] * h[..., self.channels:]

    def _rest(self, gated: Tensor, rows: Tensor) -> Tensor:
        """Projection and sum, then norm, gated product and sum."""
        x = _product(*self.project, gated, rows)
        h = normalized(x, self.eps)
        gate, bias = self.value
        h = _onednn._linear_pointwise.binary(h, _product(*self.gate, h), gate, bias, "mul")
        return _product(*self.ff_out, h, x)


class _Enlarging:
    """`forward` of the decoder's `Upsample`. Of 3 x 3 taps on an enlarged picture at most 2 x 2 see different pixels: each of the four
    pixels that one becomes is a convolution of the small picture."""

    def __init__(self, up: Upsample):
        self.up, self.kernels = up, []
        with torch.no_grad():
            for of_rows, of_columns in product(PHASES, PHASES):
                kernel = torch.einsum("iy,ocyx,jx->ocij", of_rows, up.conv.weight.double(), of_columns)
                self.kernels.append(kernel.to(up.conv.weight.dtype, memory_format=torch.channels_last))

    def __call__(self, x: Tensor) -> Tensor:
        """The module's output for x (N, C, H, W)."""
        conv = self.up.conv
        if _plainly(self.up, x, self.up):
            return type(self.up).forward(self.up, x)
        height, width = x.shape[2:]
        like = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        out = torch.empty(len(x), conv.out_channels, 2 * height, 2 * width, dtype=x.dtype, device=x.device, memory_format=like)
        for (row, column), kernel in zip(product((0, 1), (0, 1)), self.kernels):
            made = F.conv2d(x, kernel, conv.bias, padding=1)
            out[:, :, row::2, column::2] = made[:, :, row:row + height, column:column + width]
        return out


def _rows(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, H, W, C), one after the other in memory."""
    return x.permute(0, 2, 3, 1).contiguous()


def _behind(norm: nn.LayerNorm, layer: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight (out, in) and bias of a pointwise convolution that has the weight and bias of the norm before it in its own."""
    weight = layer.weight[:, :, 0, 0].double()
    return (weight * norm.weight).to(layer.weight.dtype), (layer.bias + weight @ norm.bias.double()).to(layer.weight.dtype)


def _pack(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return _onednn._reorder_linear_weight(weight.contiguous()), bias.contiguous()


FORWARDS = {FidelityBranch: _Branch, GatedBlock: _Strips, Upsample: _Enlarging, **maxim.FORWARDS}
