"""Blocks that a CPU runs in parts equal the whole ones."""
import copy

import pytest
import torch

from vdd_model.config import AdapterConfig
from vdd_model.cpu import accelerate, blocks, restore
from vdd_model.networks.adapter import Adapter


@pytest.mark.parametrize("height", [7, 8, 21])
def test_the_adapter_in_bands_equals_the_whole(height, monkeypatch):
    """Bands of 8 rows and a few positions at a time, frames of two clips; no seam, and the borders are as they were."""
    monkeypatch.setattr(blocks, "BAND", 1)
    monkeypatch.setattr(blocks, "FEED_FORWARD_ROWS", 17)
    torch.manual_seed(0)
    plain = Adapter(AdapterConfig(channels=16, heads=2), 4, 8).requires_grad_(False)
    for parameter in plain.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    latents = torch.randn(2, 4, 5, height, 9)
    fast = accelerate(copy.deepcopy(plain))
    with torch.no_grad():
        torch.testing.assert_close(fast(latents), plain(latents), rtol=0, atol=1e-5)
        assert torch.equal(restore(fast)(latents), plain(latents))
    learning = accelerate(copy.deepcopy(plain).requires_grad_())              # while it learns it is the plain one, its gradients too
    for adapter in (learning, plain.requires_grad_()):
        adapter(latents).square().sum().backward()
    for one, other in zip(learning.parameters(), plain.parameters()):
        assert torch.equal(one.grad, other.grad) and one.grad.any()
