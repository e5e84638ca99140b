"""Attention in plain steps against torch's."""
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vdd_model.networks import attention


@pytest.mark.parametrize("shape", [(2, 3, 40, 40), (1, 3, 50, 7), (6, 2, 5, 5)])
@pytest.mark.parametrize("scores", [30, 500, 1 << 21])
@pytest.mark.parametrize("width", [24, 64])
def test_plain_steps_in_chunks(shape, scores, width, monkeypatch):
    """As near to the exact result as bfloat16 scores can be, whatever the chunks; the inputs are views, as in the network."""
    monkeypatch.setattr(attention, "_SCORES", scores)
    n, heads, queries, keys = shape
    torch.manual_seed(0)
    q, k, v = (torch.randn(n, length, heads, width).bfloat16().transpose(1, 2) for length in (queries, keys, keys))
    exact = F.scaled_dot_product_attention(*(t.double() for t in (q, k, v)))
    with torch.no_grad():
        found = attention.attention(q, k, v)
    assert found.shape == exact.shape and found.dtype == torch.bfloat16
    assert (found - exact).norm() < 0.01 * exact.norm()


def test_training_goes_through_torch():
    q = torch.randn(1, 2, 5, 64, dtype=torch.bfloat16, requires_grad=True)
    found = attention.attention(q, q, q)
    found.float().sum().backward()
    assert torch.equal(found, F.scaled_dot_product_attention(q, q, q)) and q.grad is not None


@pytest.mark.parametrize(("limit", "calls"), [(1, 7), (3, 3), (7, 1), (None, 1)])
def test_a_long_batch_is_cut(limit, calls, monkeypatch):
    """CUDA's kernels take a limited batch; the pieces are bit for bit the whole."""
    q, k, v = (torch.randn(7, 2, 5, 8) for _ in range(3))
    whole, seen = F.scaled_dot_product_attention(q, k, v), []
    torchs = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *part: seen.append(len(part[0])) or torchs(*part))
    assert torch.equal(attention.torch_attention(q, k, v, limit), whole)
    assert len(seen) == calls and max(seen) <= (limit or 7) and sum(seen) == 7


def test_attention_over_time_is_cut_for_cuda(monkeypatch):
    """The UNet's and the adapter's: both go through the function that knows the device's limit."""
    from vdd_model.networks import adapter
    kept, seen = attention.torch_attention, []

    def count(q, k, v):
        seen.append(len(q))
        return kept(q, k, v, 10)

    monkeypatch.setattr(attention, "torch_attention", count)
    attention.attention(*torch.randn(3, 12, 2, 5, 8))
    adapter.TemporalTransformer(16, 2, torch.nn)(torch.randn(24, 5, 16))
    assert seen == [12, 24]
