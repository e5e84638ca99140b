"""Layers fused and packed for a CPU."""
from __future__ import annotations

import pytest
import torch
from torch import nn

from vdd_model.cpu import onednn
from vdd_model.inference import pipeline

PLAIN = {"linear": lambda: onednn.Linear(24, 40), "pointwise": lambda: onednn.pointwise_conv(nn.Conv1d)(24, 40, 1)}


@pytest.mark.parametrize("make", PLAIN.values(), ids=PLAIN)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_linear_with_a_sum(make, packed):
    torch.manual_seed(0)
    layer = make().requires_grad_(False)
    x, add = torch.randn(2, 3, 5, 24), torch.randn(2, 3, 5, 40)
    weight = layer.weight.flatten(1).clone()
    if packed:
        onednn.pack(layer)
    with torch.no_grad():
        expected = nn.functional.linear(x, weight, layer.bias)
        assert torch.allclose(layer(x), expected, atol=1e-5)
        before = add.clone()
        assert torch.allclose(onednn.linear(layer, x, add), expected + add, atol=1e-5)
        assert torch.equal(add, before)


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
    host = object()
    assert onednn.fusible(host) is host and onednn.fusible(nn).Linear is onednn.Linear


def test_a_wide_model_is_packed_when_it_is_loaded(tiny_checkpoint, monkeypatch):
    clip = torch.rand(2, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    plain = pipeline.Deblurrer(tiny_checkpoint, device="cpu", dtype=torch.float32)
    monkeypatch.setattr(pipeline, "PACKED_FROM_DIM", 0)
    packed = pipeline.Deblurrer(tiny_checkpoint, device="cpu", dtype=torch.float32)
    assert not any(getattr(m, "packed", ()) for m in plain.model.modules())
    assert torch.allclose(packed.deblur(clip), plain.deblur(clip), atol=1e-4)
    if onednn.supports(torch.float32):
        assert any(getattr(m, "packed", ()) for m in packed.model.unet.modules())
