"""The training's group norm against torch's."""
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import make_tiny_model
from torch import nn

from train.backend.groupnorm import RowGroupNorm, use_rows


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_values_and_gradients_are_torchs(dtype, tolerance, layout):
    torch.manual_seed(0)
    norm = RowGroupNorm(8, 32, eps=1e-6)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
    x = (torch.randn(3, 32, 6, 5) + 2).to(dtype).contiguous(memory_format=layout).requires_grad_()
    slope, before = torch.randn(3, 32, 6, 5).to(dtype), x.detach().clone()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = norm(x)
    exact = F.group_norm(x.double(), 8, norm.weight.double(), norm.bias.double(), 1e-6)
    assert found.dtype == dtype and (found - exact).norm() < tolerance * exact.norm()
    parameters = (x, norm.weight, norm.bias)
    for a, b in zip(torch.autograd.grad(found, parameters, slope), torch.autograd.grad(exact, parameters, slope.double())):
        assert (a - b).norm() < tolerance * b.norm()
    assert torch.equal(x, before)


def test_a_model_keeps_its_keys_and_outputs():
    model, x = make_tiny_model(), torch.rand(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    keys, (mean, _) = list(model.state_dict()), model.vae.encode(x)
    use_rows(model)
    assert not any(type(module) is nn.GroupNorm for module in model.modules())
    assert list(model.state_dict()) == keys and torch.allclose(model.vae.encode(x)[0], mean, atol=1e-5)
