"""Attention in bfloat16 on a CPU without AMX as three plain steps: torch's fused kernel is half as fast there. With AMX it is 1.5 times as
fast as they are."""
from __future__ import annotations

import torch
from torch import Tensor

from ..networks.layers import attention
from .onednn import in_tiles, supports

_SCORES = 1 << 21               # scores made at a time: they stay in the cache


def plain_steps(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k' / sqrt(D)) v for q (N, H, S, D) and k, v (N, H, L, D); where it is not for this way, torch's."""
    if (q.device.type != "cpu" or q.dtype != torch.bfloat16 or torch.is_grad_enabled() or torch.compiler.is_compiling()
            or not supports(q.dtype) or in_tiles(q.dtype)):
        return attention(q, k, v)
    shape = q.shape
    q, k, v = ((t.contiguous() if len(t) > 1 else t).flatten(0, 1) for t in (q * shape[-1]**-0.5, k, v))      # (heads, S or L, D)
    out = torch.empty(q.shape, dtype=q.dtype)
    rows = max(1, min(q.shape[1], _SCORES // k.shape[1]))
    heads = max(1, _SCORES // (rows * k.shape[1]))
    for some in (slice(i, i + heads) for i in range(0, len(q), heads)):
        for part in (slice(i, i + rows) for i in range(0, q.shape[1], rows)):
            scores = torch.bmm(q[some, part], k[some].transpose(1, 2))
            torch.bmm(torch.softmax(scores, -1, out=scores), v[some], out=out[some, part])
    return out.view(shape)
