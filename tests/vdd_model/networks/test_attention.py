"""Attention, cut where a device asks for it."""
import pytest
import torch
import torch.nn.functional as F

from vdd_model.networks import adapter, layers


@pytest.mark.parametrize(("limit", "calls"), [(1, 7), (3, 3), (7, 1), (None, 1)])
def test_a_long_batch_is_cut(limit, calls, monkeypatch):
    """CUDA's kernels take a limited batch; the pieces are bit for bit the whole."""
    q, k, v = (torch.randn(7, 2, 5, 8) for _ in range(3))
    whole, seen = F.scaled_dot_product_attention(q, k, v), []
    torchs = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *part: seen.append(len(part[0])) or torchs(*part))
    assert torch.equal(layers.attention(q, k, v, limit), whole)
    assert len(seen) == calls and max(seen) <= (limit or 7) and sum(seen) == 7


def test_attention_over_time_is_cut_for_cuda():
    """The UNet's and the adapter's: both go through the function that knows the device's limit."""
    for attend in (layers.Attention.attend, adapter.TemporalTransformer.attend):
        assert attend is layers.attention
