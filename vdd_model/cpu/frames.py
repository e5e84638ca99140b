"""How a CPU keeps what waits: frames (H, W, 3), large ones as 16-bit numbers, and other large tensors, `apart` from the rest."""
from __future__ import annotations

import mmap

import torch
from torch import Tensor

KEPT_WHOLE_PIXELS = 640 * 480        # larger frames are kept as 16-bit numbers
APART_BYTES = 2**21
ROWS = 128                           # of a large frame that are converted at a time


def compact(frame: Tensor) -> Tensor:
    """A frame (H, W, 3), float, in [0, 1], as it is kept until it is deblurred: a large one of its own on a CPU, no part of a larger
    tensor, as uint16, which `to_float` reads."""
    large, own = frame.shape[0] * frame.shape[1] > KEPT_WHOLE_PIXELS, frame.untyped_storage().nbytes() == frame.nbytes
    if not large or not own or frame.device.type != "cpu" or frame.dtype == torch.uint16:
        return frame
    kept = _pages(frame.numel(), torch.uint16).view(frame.shape)
    for source, target in zip(frame.split(ROWS), kept.split(ROWS)):
        target.copy_(source.clamp(0, 1).mul_(65535).round_())
    return kept


def apart(x: Tensor) -> Tensor:
    """A large tensor's copy, on a CPU, in pages that go back to the system with it: among what a network frees and takes again, what stays
    leaves gaps. Any other tensor itself."""
    if x.device.type != "cpu" or x.nbytes < APART_BYTES:
        return x
    return _pages(x.numel(), x.dtype).as_strided(x.shape, torch.empty_like(x, device="meta").stride()).copy_(x)


def _pages(count: int, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(mmap.mmap(-1, count * dtype.itemsize), dtype=dtype)


def to_float(frame: Tensor, like: Tensor | torch.device | None = None) -> Tensor:
    """A frame, or a part of one, `compact` or not, as float32 on a device (default: its own)."""
    device = frame.device if like is None else like if isinstance(like, torch.device) else like.device
    values = frame.to(device, torch.float32)
    return values.div_(65535) if frame.dtype == torch.uint16 else values
