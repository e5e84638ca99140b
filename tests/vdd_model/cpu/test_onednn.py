"""Layers fused and packed for a CPU."""
import copy
import types

import pytest
import rounding
import torch
from conftest import without_zeros
from torch import nn

from vdd_model import cpu
from vdd_model.config import UNetConfig
from vdd_model.cpu import accelerate, onednn, restore
from vdd_model.inference import pipeline
from vdd_model.networks.unet3d import UNet3D


@torch.no_grad()
@pytest.mark.parametrize("make", [lambda: onednn.Linear(24, 40), lambda: onednn.PointwiseConv(24, 40, 1)], ids=["linear", "pointwise"])
def test_a_sum_is_taken_in_the_product_and_the_summand_stays_as_it_is(make):
    torch.manual_seed(0)
    layer, x, add = make().requires_grad_(False), torch.randn(2, 3, 5, 24), torch.randn(2, 3, 5, 40)
    expected, before = nn.functional.linear(x, layer.weight.flatten(1), layer.bias) + add, add.clone()
    for fast in (layer, onednn.pack(copy.deepcopy(layer))):
        assert torch.allclose(onednn.linear(fast, x, add), expected, atol=1e-5) and torch.equal(add, before)


@pytest.mark.parametrize("gelu_pays", [True, False])
def test_geglu_in_training_and_inference(gelu_pays, monkeypatch):
    monkeypatch.setattr(onednn, "_gelu_pays", lambda: gelu_pays)
    torch.manual_seed(0)
    layer = onednn.Linear(16, 64)
    layer.pieces = 2
    x = torch.randn(7, 16, requires_grad=True)
    value, gate = nn.functional.linear(x, layer.weight, layer.bias).chunk(2, -1)
    expected = value * nn.functional.gelu(gate)
    trained = onednn.geglu(layer, x)
    trained.sum().backward()
    assert x.grad is not None and torch.allclose(trained, expected)
    with torch.no_grad():
        assert torch.allclose(onednn.geglu(layer, x), expected, atol=1e-5)
        assert torch.allclose(onednn.geglu(onednn.pack(layer), x), expected, atol=1e-5)


def test_float64_float16_and_hosts_layers_are_left_alone():
    layer = onednn.Linear(8, 8)
    with torch.no_grad():
        assert not onednn.fuses(layer.double(), torch.zeros(1, 8, dtype=torch.float64))
        assert not onednn.fuses(layer.half(), torch.zeros(1, 8, dtype=torch.float16))
        assert not onednn.fuses(nn.Linear(8, 8), torch.zeros(1, 8))
    assert not onednn.pack(layer.double()).packed
    host = type("Linear", (nn.Linear,), {})
    unet = UNet3D(TINY, operations=types.SimpleNamespace(**{**vars(nn), "Linear": host}))
    assert all(type(layer) is host for layer in accelerate(unet).modules() if isinstance(layer, nn.Linear))


def test_a_wide_model_is_packed_when_it_is_loaded(tiny_checkpoint, monkeypatch):
    clip = torch.rand(2, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    plain = pipeline.Deblurrer(tiny_checkpoint, device="cpu", dtype=torch.float32)
    monkeypatch.setattr(cpu, "PACKED_FROM_DIM", 0)
    packed = pipeline.Deblurrer(tiny_checkpoint, device="cpu", dtype=torch.float32)
    assert not any(getattr(m, "packed", ()) for m in plain.model.modules())
    assert torch.allclose(packed.deblur(clip), plain.deblur(clip), atol=1e-4)
    if onednn.supports(torch.float32):
        assert any(getattr(m, "packed", ()) for m in packed.model.unet.modules())


TINY = UNetConfig(dim=32, dim_mult=(1, 2), blocks_per_level=1, num_heads=2, head_dim=16, attn_scales=(1.0, 0.5), context_dim=16,
                  image_dim=16, norm_groups=8)


@pytest.fixture()
def network(monkeypatch):
    """A tiny network with random weights everywhere, whose every layer is worth packing; and arguments for it."""
    monkeypatch.setattr(onednn, "_WORTH_PACKING", 0)
    monkeypatch.setattr(onednn, "_WORTH_FILTERING", 0)
    torch.manual_seed(0)
    model = without_zeros(UNet3D(TINY), 0.1).requires_grad_(False)
    arguments = torch.randn(2, 4, 3, 4, 6), torch.tensor([99, 399]), torch.randn(2, 5, 16), torch.randn(2, 8, 3, 4, 6)
    return model, arguments


@pytest.mark.parametrize("packed", [False, True])
def test_faster_layers_in_and_out(network, packed):
    """The same answer with them, the same keys, and the very same network without them again."""
    plain, arguments = network
    fast, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()
    kinds, keys = [type(m) for m in plain.modules()], {name: value.shape for name, value in plain.state_dict().items()}
    count = rounding.operations(plain)
    with torch.no_grad():
        truth = exact(*(a.double() if a.is_floating_point() else a for a in arguments))
        assert rounding.error(accelerate(fast, packed)(*arguments), truth, count) <= 1
        assert any(type(m) is onednn.Linear for m in fast.modules()) and [type(m) for m in fast.modules()] != kinds
        restore(fast)
        assert [type(m) for m in fast.modules()] == kinds
        assert {name: value.shape for name, value in fast.state_dict().items()} == keys
        again = fast(*arguments)
        assert torch.equal(again, plain(*arguments)) or packed and rounding.error(again, truth, count) <= 1
    for name, value in fast.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("packed", [False, True])
def test_forward_hooks_see_what_the_plain_layers_give(network, packed):
    """On every module: each is called, and with the same output, sums of others not in it."""
    plain, arguments = network
    fast = accelerate(copy.deepcopy(plain), packed)
    seen = [{}, {}]
    for model, outputs in zip((plain, fast), seen):
        for name, module in model.named_modules():
            module.register_forward_hook(lambda m, i, o, name=name, outputs=outputs: outputs.update({name: o.clone()}))
        with torch.no_grad():
            model(*arguments)
    assert set(seen[0]) == set(seen[1])
    for name, output in seen[0].items():
        torch.testing.assert_close(seen[1][name], output, rtol=1e-3, atol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("amx, enlarges, matrices", [(False, False, 16), (True, False, 1), (True, True, 9)])
def test_with_amx_a_narrow_convolution_is_not_filtered(amx, enlarges, matrices, monkeypatch):
    """But for an enlarging one, which makes do with a quarter of the products."""
    if not onednn.supports(torch.float32):
        pytest.skip("oneDNN does not run on this processor")
    monkeypatch.setattr(onednn, "in_tiles", lambda dtype: amx)
    monkeypatch.setattr(onednn, "_WORTH_FILTERING", 1 << 12)                             # the layer has 36,864 weights
    layer = onednn.Conv2d(64, 64, 3, padding=1).requires_grad_(False)
    layer.enlarges = enlarges
    x = torch.randn(1, 64, 6, 8).contiguous(memory_format=torch.channels_last)
    given = nn.functional.interpolate(x, scale_factor=2.0, mode="nearest") if enlarges else x
    expected = nn.functional.conv2d(given, layer.weight, layer.bias, padding=1)
    with torch.no_grad():
        onednn.pack(layer)
        assert len(layer.packed) == matrices and torch.allclose(layer(x), expected, atol=1e-4)
