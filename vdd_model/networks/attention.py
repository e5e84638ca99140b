"""Softmax attention."""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cpu.onednn import supports

_SCORES = 1 << 21               # scores made at a time: they stay in the cache
_CUDA_GRID = 65535              # the longest batch that CUDA's kernels take


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k' / sqrt(D)) v for q (N, H, S, D) and k, v (N, H, L, D)."""
    if (q.device.type == "cpu" and q.dtype == torch.bfloat16 and not torch.is_grad_enabled()
            and not torch.compiler.is_compiling() and supports(q.dtype)):
        heads = ((t.contiguous() if len(t) > 1 else t).flatten(0, 1) for t in (q * q.shape[-1]**-0.5, k, v))
        return _in_bfloat16(*heads).view(q.shape)
    return torch_attention(q, k, v)


def torch_attention(q: Tensor, k: Tensor, v: Tensor, limit: int | None = None) -> Tensor:
    """torch's softmax(q k' / sqrt(D)) v, at most `limit` entries of the batch at a time; None: what the device takes.

    Attention over time has one entry per latent position of a frame: 115200 for two branches of 720 x 1280 pixels at factor 4.
    """
    if limit is None:
        limit = _CUDA_GRID if q.device.type == "cuda" else len(q)
    if len(q) <= limit:
        return F.scaled_dot_product_attention(q, k, v)
    parts = math.ceil(len(q) / limit)                          # of about one size: 65536 entries are no 65535 and a single one
    return torch.cat([F.scaled_dot_product_attention(*part) for part in zip(q.chunk(parts), k.chunk(parts), v.chunk(parts))])


def _in_bfloat16(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As three plain steps: the fused kernel multiplies in float32 on a CPU, at half the speed. All (heads, S or L, D)."""
    out = torch.empty(q.shape, dtype=q.dtype)
    rows = max(1, min(q.shape[1], _SCORES // k.shape[1]))
    heads = max(1, _SCORES // (rows * k.shape[1]))
    for some in (slice(i, i + heads) for i in range(0, len(q), heads)):
        for part in (slice(i, i + rows) for i in range(0, q.shape[1], rows)):
            scores = torch.bmm(q[some, part], k[some].transpose(1, 2))
            torch.bmm(torch.softmax(scores, -1, out=scores), v[some], out=out[some, part])
    return out
