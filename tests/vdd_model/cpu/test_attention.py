"""Attention in plain steps against torch's."""
import pytest
import torch
import torch.nn.functional as F

from vdd_model.cpu import attention


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
        found = attention.plain_steps(q, k, v)
    assert found.shape == exact.shape and found.dtype == torch.bfloat16
    assert (found - exact).norm() < 0.01 * exact.norm()


def test_training_goes_through_torch():
    q = torch.randn(1, 2, 5, 64, dtype=torch.bfloat16, requires_grad=True)
    found = attention.plain_steps(q, q, q)
    found.float().sum().backward()
    assert torch.equal(found, F.scaled_dot_product_attention(q, q, q)) and q.grad is not None
