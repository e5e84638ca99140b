"""The fidelity branch in strips equals the plain one."""
import copy

import pytest
import torch
from torch import nn

from vdd_model.cpu import strips
from vdd_model.cpu.onednn import supports
from vdd_model.networks.fidelity import GatedBlock


def block(channels: int, dtype: torch.dtype) -> GatedBlock:
    """A block with random norms and biases too."""
    torch.manual_seed(0)
    made = GatedBlock(channels, nn)
    for parameter in made.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return made.to(dtype).requires_grad_(False)


@pytest.mark.parametrize("dtype, least", [(torch.float32, 110), (torch.bfloat16, 42)])
@pytest.mark.parametrize("height, width", [(1, 5), (4, 7), (37, 16)])
def test_strips_equal_whole_frames(dtype, least, height, width, monkeypatch):
    """Whatever the strips' height, at the frame's borders and at the strips' too; in bfloat16 both round."""
    if not supports(dtype):
        pytest.skip(f"oneDNN does not compute in {dtype} here")
    monkeypatch.setattr(strips, "STRIP_BYTES", 1)          # the smallest strips
    plain = block(16, dtype)
    fast = strips.in_strips(copy.deepcopy(plain))
    x = torch.randn(2, 16, height, width).to(dtype).contiguous(memory_format=torch.channels_last)
    exact = plain.double()(x.double())
    with torch.no_grad():
        found = fast(x)
    assert found.dtype == dtype and found.shape == x.shape and found.is_contiguous(memory_format=torch.channels_last)
    noise = (found.double() - exact).square().mean((0, 1, 3)) / exact.square().mean()       # row by row: no seam
    assert -10 * noise.max().log10() > least


def test_gradients_go_through_the_layers():
    """With gradients, and in another type, the block is the plain one."""
    plain = block(8, torch.float32)
    fast = strips.in_strips(copy.deepcopy(plain))
    x = torch.randn(1, 8, 6, 5, requires_grad=True)
    assert torch.equal(fast(x), plain(x)) and fast(x).requires_grad
    assert set(fast.state_dict()) == set(plain.state_dict())
