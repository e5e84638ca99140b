"""Optional: faster ways through the same layers on a CPU. `accelerate` puts them in, from outside; `restore` takes them out.

What each part buys, as processor time without it over that with all (`python -m benchmarks.wing --frames 8 --size 256 128 --threads 1`, a
call of tft2v's layers, AVX-512; float32 | bfloat16): the plain network 1.81 | 1.30, without packed weights 1.20 | 1.26, without Winograd's
filtering 1.12 | 1.15, without attention in plain steps (bfloat16's alone) 1.07; at 16 x 256 x 256 without the feed-forward by rows, whose
wide inner layer is never whole, 1.11 | 1.03. With AMX (`onednn.in_tiles`) some of it is left to torch.
"""
from __future__ import annotations

import platform

import torch
from torch import nn

from ..networks.autoencoder import Decoder, Encoder
from ..networks.layers import GEGLU as PlainGEGLU
from ..networks.layers import Upsample as PlainUpsample
from ..networks.maxim import Maxim
from ..networks.unet3d import UNet3D
from .blocks import BLOCKS
from .onednn import LAYERS, Linear, pack, supports, unpack
from .strips import in_strips, out_of_strips

PACKED_FROM_DIM = 256                    # a UNet this wide is packed: a smaller one gains next to nothing


def accelerate(model: nn.Module, packed: bool | None = None) -> nn.Module:
    """Swap the 3D-UNet's layers and blocks, the picture path's and the prior's for faster ones, in place; a host's own layers stay.

    packed: also put the UNet's weights into oneDNN's layout, for inference only; None: where it is wide enough to gain by it. Anything but
    inference on a CPU goes through the plain layers' arithmetic as before. Forward hooks keep working. Returns the model.
    """
    for unet in [part for part in model.modules() if isinstance(part, UNet3D)]:
        for layer in unet.modules():
            if isinstance(layer, PlainGEGLU) and type(layer.proj) in LAYERS:
                layer.proj.pieces = 2
            elif isinstance(layer, PlainUpsample) and type(layer.conv) in LAYERS:
                layer.conv.enlarges = True
            layer.__class__ = LAYERS.get(type(layer), type(layer))
        if unet.config.dim >= PACKED_FROM_DIM if packed is None else packed:
            pack(unet)
    for prior in [part for part in model.modules() if isinstance(part, Maxim)]:
        for layer in prior.modules():
            layer.__class__ = {nn.Linear: Linear}.get(type(layer), type(layer))
    for layer in model.modules():
        layer.__class__ = BLOCKS.get(type(layer), type(layer))
        if isinstance(layer, Encoder | Decoder):
            layer.channels_last = supports(next(layer.parameters()).dtype)
    return in_strips(model)


def restore(model: nn.Module) -> nn.Module:
    """Inverse of `accelerate`; see `onednn.unpack` for what packed weights lose. Returns the model."""
    plain = {fast: slow for slow, fast in (*LAYERS.items(), *BLOCKS.items())}
    for layer in unpack(model).modules():
        layer.__class__ = plain.get(type(layer), type(layer))
        if isinstance(layer, Encoder | Decoder):
            layer.channels_last = False
    return out_of_strips(model)


def cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 itself. (Where it does not, PyTorch still can, but many times slower.)"""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", bool)       # on ARM it asks the processor
    return torch.backends.mkldnn.is_available() and bool(supported())
