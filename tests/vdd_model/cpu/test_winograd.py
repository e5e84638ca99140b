"""Convolutions through Winograd's filtering against plain ones."""
import functools

import pytest
import rounding
import torch
import torch.nn.functional as F

from vdd_model.cpu import winograd


def products(weight: torch.Tensor, bias: torch.Tensor, enlarged: bool = False) -> list:
    matrices = winograd.filters(weight, enlarged)
    second = {3: 1, 4: 1, 9: 4, 16: 5}[len(matrices)]                   # along each axis

    def product(x, add, weight, bias):
        y = F.linear(x, weight, bias)
        return y if add is None else y + add
    return [functools.partial(product, weight=m, bias=bias if i == second else None) for i, m in enumerate(matrices)]


@pytest.mark.parametrize("size", [(3, 4, 6), (2, 5, 3), (1, 1, 1), (5, 2, 7)])
@pytest.mark.parametrize("kernel", ["space", "time", "enlarged"])
@pytest.mark.parametrize("positions", [1, 16, 4096])
def test_same_as_a_plain_convolution(size, kernel, positions, monkeypatch):
    monkeypatch.setattr(winograd, "_POSITIONS", positions)
    torch.manual_seed(0)
    n, height, width = size
    wide = 1 if kernel == "time" else 3
    x, weight, bias = (torch.randn(shape, dtype=torch.float64) for shape in ((n, height, width, 5), (7, 5, 3, wide), (7,)))
    images = x.permute(0, 3, 1, 2)
    if kernel == "enlarged":
        images = F.interpolate(images, scale_factor=2.0, mode="nearest")
    expected = F.conv2d(images, weight, bias, padding=(1, wide // 2)).permute(0, 2, 3, 1)
    add, before = torch.randn_like(expected), x.clone()
    arguments = (x, products(weight, bias, kernel == "enlarged"), 7, (1,) if kernel == "time" else (1, 2))
    for extra in (None, add):
        found = winograd.convolve(*arguments, enlarged=kernel == "enlarged", add=extra)
        assert found.is_contiguous() and torch.allclose(found, expected if extra is None else expected + extra, atol=1e-12)
    assert torch.equal(x, before)


@pytest.mark.parametrize("channels", [320, 1280])
def test_rounds_as_its_operations_do(channels):
    """The bound of a plain convolution, whose every output sums 9 x channels products, holds for the filtered one."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(1, 8, 8, channels), torch.randn(64, channels, 3, 3) / 100, torch.randn(64)
    exact = F.conv2d(x.permute(0, 3, 1, 2).double(), weight.double(), bias.double(), padding=1).permute(0, 2, 3, 1)
    assert rounding.error(winograd.convolve(x, products(weight, bias), 64, (1, 2)), exact, 9 * channels) <= 1
