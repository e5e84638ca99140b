"""What a CPU runs in another way equals the plain layers: attention in steps, the adapter in bands, convolutions by Winograd's filtering.

And freed memory, which is kept for the next call of a network, is given back when something else needs it.
"""
import copy
import functools
import subprocess
import sys

import pytest
import rounding
import torch
import torch.nn.functional as F

from vdd_model.config import AdapterConfig
from vdd_model.cpu import accelerate, attention, blocks, restore, winograd
from vdd_model.networks.adapter import Adapter


@pytest.mark.parametrize("shape", [(2, 3, 40, 40), (1, 3, 50, 7), (6, 2, 5, 5)])
@pytest.mark.parametrize("scores", [30, 500, 1 << 21])
@pytest.mark.parametrize("width", [24, 64])
def test_plain_steps_in_chunks(shape, scores, width, monkeypatch):
    """As near to the exact result as bfloat16 scores can be, whatever the chunks; the inputs are views, as in the network."""
    monkeypatch.setattr(attention, "_SCORES", scores)
    monkeypatch.setattr(attention, "in_tiles", lambda dtype: False)
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


def products(weight: torch.Tensor, bias: torch.Tensor, enlarged: bool = False) -> list:
    def product(x, add, weight, bias):
        return F.linear(x, weight, bias) + (0 if add is None else add)
    matrices = winograd.filters(weight, enlarged)
    second = {3: 1, 4: 1, 9: 4, 16: 5}[len(matrices)]                   # along each axis
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


KEEP_AND_GIVE_BACK = """
import os
from vdd_model.cpu.allocator import give_back_memory, keep_freed_memory
if not keep_freed_memory():
    raise SystemExit(77)

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
start = resident()
blocks = [bytearray(2**21) for _ in range(64)]
blocks = blocks[::8]                          # what stays lies between what is freed
kept = resident() - start
give_back_memory()
assert kept > 100 and resident() - start < 40, (kept, resident() - start)
"""


def test_what_is_free_is_kept_and_given_back():
    done = subprocess.run([sys.executable, "-c", KEEP_AND_GIVE_BACK], stderr=subprocess.PIPE, text=True)
    if done.returncode == 77:
        pytest.skip("another C library than glibc")
    assert done.returncode == 0, done.stderr
