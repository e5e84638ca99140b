"""Ways to spend less time or memory than the exact network does; measured by benchmarks/options.py (price) and quality.py (loss)."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def to_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (O, ...) -> its float8 form and a scale per output channel."""
    scale = weight.float().flatten(1).abs().amax(1).clamp_min(1e-12).div_(FP8_MAX).view(-1, *[1] * (weight.ndim - 1))
    return (weight.float() / scale).to(FP8), scale.to(weight.dtype)


def weight_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


@contextmanager
def fp8_weights(module: nn.Module) -> Iterator[None]:
    """Every weight matrix is stored as float8 and brought back to the layer's own type when the layer runs."""
    handles, before = [], []
    for layer in module.modules():
        if not isinstance(layer, LAYERS) or layer.weight.ndim < 2:
            continue
        stored, scale = to_fp8(layer.weight)
        before.append((layer, layer.weight))
        layer.weight = nn.Parameter(stored, requires_grad=False)

        def load(layer, arguments, stored=stored, scale=scale):
            layer.weight = nn.Parameter(stored.to(scale.dtype) * scale, requires_grad=False)

        def drop(layer, arguments, output, stored=stored):
            layer.weight = nn.Parameter(stored, requires_grad=False)

        handles += [layer.register_forward_pre_hook(load), layer.register_forward_hook(drop)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for layer, weight in before:
            layer.weight = weight


@contextmanager
def rounded_to_fp8(module: nn.Module) -> Iterator[None]:
    """The values float8 weights have, kept in the layers' own type: the same output as `fp8_weights`, whatever calls the layers."""
    before = []
    for layer in module.modules():
        if isinstance(layer, LAYERS) and layer.weight.ndim >= 2:
            stored, scale = to_fp8(layer.weight)
            before.append((layer.weight, layer.weight.detach().clone()))
            layer.weight.data.copy_(stored.to(scale.dtype) * scale)
    try:
        yield
    finally:
        for weight, old in before:
            weight.data.copy_(old)


@contextmanager
def cached_features(unet: nn.Module, every: int) -> Iterator[None]:
    """Run the coarser levels in every `every`-th step only and keep their output in between (DeepCache, arXiv 2312.00858).

    The finest level runs in each step. Conditional and unconditional calls, told apart by their context, keep their own.
    """
    level = unet.config.blocks_per_level + 1
    deep = {id(block) for block in (*unet.input_blocks[level:], unet.middle_block, *unet.output_blocks[:-level])}
    exact, calls, kept = unet._run, {}, {}

    def run(block: nn.Module, x: Tensor, embedding: Tensor, context, skip: Tensor | None = None) -> Tensor:
        key = id(context)
        if block is unet.input_blocks[0]:
            calls[key] = calls.get(key, -1) + 1
        if id(block) not in deep:
            return exact(block, x, embedding, context, skip)
        if calls[key] % every == 0:
            kept[key, id(block)] = exact(block, x, embedding, context, skip)
        return kept[key, id(block)]

    unet._run = run
    try:
        yield
    finally:
        del unet._run
