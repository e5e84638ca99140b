"""The fidelity branch's blocks on a CPU, a strip of rows at a time: between one layer and the next a strip stays in the cache.

Layer after layer over whole frames, a block waits for memory more than it computes. Here its norms' weights become part of the layers
behind them, its pointwise convolutions are oneDNN's products, gates and sums included; the result agrees with the layers' to rounding.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..networks.fidelity import GatedBlock
from .onednn import _onednn, _product, supports

STRIP_BYTES = 2**20             # of a block's widest tensor, for each thread: about the cache that a core has for itself


def in_strips(model: nn.Module) -> nn.Module:
    """Let all `GatedBlock`s of a float32 or bfloat16 model on a CPU run in strips. Their weights are taken as they are now: the model is
    for inference from here on. Where oneDNN does not compute in the type, nothing changes. Returns the model."""
    for block in model.modules():
        if isinstance(block, GatedBlock) and block.expand.weight.device.type == "cpu" and supports(block.expand.weight.dtype):
            block.forward = _Strips(block)
    return model


class _Strips:
    """`forward` of one block."""

    def __init__(self, block: GatedBlock):
        self.block, self.channels, self.eps = block, block.project.in_channels, block.norm1.norm.eps
        with torch.no_grad():
            self.expand = _pack(*_behind(block.norm1.norm, block.expand))
            weight, bias = _behind(block.norm2.norm, block.ff_in)
            self.value, self.gate = (_pack(w, b) for w, b in zip(weight.chunk(2), bias.chunk(2)))
            self.project, self.ff_out = (_pack(layer.weight[:, :, 0, 0], layer.bias) for layer in (block.project, block.ff_out))

    def __call__(self, x: Tensor) -> Tensor:
        """The block's output for x (N, C, H, W), channels-last."""
        if torch.is_grad_enabled() or x.dtype != self.block.expand.weight.dtype or torch.is_autocast_enabled("cpu"):
            return type(self.block).forward(self.block, x)
        images, height, width = x.permute(0, 2, 3, 1).contiguous(), *x.shape[2:]
        out, halo = torch.empty_like(images), self.block.depthwise.padding[0]
        rows = max(4, torch.get_num_threads() * STRIP_BYTES // (width * 2 * self.channels * x.element_size()))
        for image, result in zip(images, out):
            for start in range(0, height, rows):
                stop = min(start + rows, height)
                above = min(start, halo)
                h = self._gated(image[start - above:stop + halo])[above:above + stop - start]
                result[start:stop] = self._rest(h, image[start:stop])
        return out.permute(0, 3, 1, 2)

    def _gated(self, rows: Tensor) -> Tensor:
        """Norm, expansion, depthwise convolution and gate of rows (H, W, C); those at the ends see zeros behind them."""
        h = _product(*self.expand, F.layer_norm(rows, (self.channels,), eps=self.eps))
        h = self.block.depthwise(h.permute(2, 0, 1)[None])[0].permute(1, 2, 0)
        return h[..., :self.channels] * h[..., self.channels:]

    def _rest(self, gated: Tensor, rows: Tensor) -> Tensor:
        """Projection and sum, then norm, gated product and sum."""
        x = _product(*self.project, gated.contiguous(), rows)
        h = F.layer_norm(x, (self.channels,), eps=self.eps)
        gate, bias = self.value
        h = _onednn._linear_pointwise.binary(h, _product(*self.gate, h), gate, bias, "mul")
        return _product(*self.ff_out, h, x)


def _behind(norm: nn.LayerNorm, layer: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight (out, in) and bias of a pointwise convolution that has the weight and bias of the norm before it in its own."""
    weight = layer.weight[:, :, 0, 0].double()
    return (weight * norm.weight).to(layer.weight.dtype), (layer.bias + weight @ norm.bias.double()).to(layer.weight.dtype)


def _pack(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return _onednn._reorder_linear_weight(weight.contiguous()), bias.contiguous()
