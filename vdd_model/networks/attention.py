"""Softmax attention."""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_CUDA_GRID = 65535              # the longest batch that CUDA's kernels take


def attention(q: Tensor, k: Tensor, v: Tensor, limit: int | None = None) -> Tensor:
    """softmax(q k' / sqrt(D)) v for q (N, H, S, D) and k, v (N, H, L, D), at most `limit` entries of the batch at a time; None: what the
    device takes.

    Attention over time has one entry per latent position of a frame: 115200 for two branches of 720 x 1280 pixels at factor 4.
    """
    if limit is None:
        limit = _CUDA_GRID if q.device.type == "cuda" else len(q)
    if len(q) <= limit:
        return F.scaled_dot_product_attention(q, k, v)
    parts = math.ceil(len(q) / limit)                          # of about one size: 65536 entries are no 65535 and a single one
    return torch.cat([F.scaled_dot_product_attention(*part) for part in zip(q.chunk(parts), k.chunk(parts), v.chunk(parts))])
