"""The picture path and the prior's blocks as the CPU runs them, in strips, equal the plain layers."""
import copy
import dataclasses

import pytest
import torch
from torch import nn

from vdd_model.config import AutoencoderConfig, FidelityConfig
from vdd_model.cpu import accelerate, maxim, norms, restore, strips
from vdd_model.cpu.onednn import supports
from vdd_model.networks.autoencoder import AutoencoderKL, Upsample
from vdd_model.networks.fidelity import FidelityBranch, GatedBlock
from vdd_model.networks.maxim import CrossGating, GateWeights, Maxim, MultiAxisMlp

CONFIG = AutoencoderConfig(channels=16, channel_mult=(1, 2), patch_size=2, norm_groups=8)
BRANCH = FidelityConfig(channels=(24, 16), blocks=(2, 1))


@pytest.fixture(autouse=True)
def small_pictures_too(monkeypatch):
    monkeypatch.setattr(strips, "WORTH", 0)


def needs(dtype: torch.dtype) -> None:
    if not supports(dtype):
        pytest.skip(f"oneDNN does not compute in {dtype} here")


def decibels(found: torch.Tensor, exact: torch.Tensor, axes: tuple[int, ...] = ()) -> float:
    """Signal to noise in float64; over these axes, of the worst of what is left."""
    return float(-10 * ((found.double() - exact).square().mean(axes or None) / exact.square().mean()).max().log10())


def block(channels: int, dtype: torch.dtype) -> GatedBlock:
    torch.manual_seed(0)
    made = GatedBlock(channels, nn)
    for parameter in made.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return made.to(dtype).requires_grad_(False)


@pytest.mark.parametrize("dtype, least", [(torch.float32, 110), (torch.bfloat16, 42)])
@pytest.mark.parametrize("height, width", [(1, 5), (4, 7), (37, 16)])
@pytest.mark.parametrize("strip", [1, 2**13], ids=["smallest strips", "two images of 4 x 7 in one"])
def test_strips_equal_whole_frames(dtype, least, height, width, strip, monkeypatch):
    """Whatever the strips' height, at the frame's borders and at the strips' too; in bfloat16 both round."""
    needs(dtype)
    monkeypatch.setattr(strips, "STRIP_BYTES", strip)
    plain = block(16, dtype)
    fast = strips.in_strips(copy.deepcopy(plain))
    x = torch.randn(3, 16, height, width).to(dtype).contiguous(memory_format=torch.channels_last)
    exact = plain.double()(x.double())
    with torch.no_grad():
        found = fast(x)
    assert found.dtype == dtype and found.shape == x.shape and found.is_contiguous(memory_format=torch.channels_last)
    assert decibels(found, exact, (0, 1, 3)) > least                                         # row by row: no seam


@pytest.mark.parametrize("dtype, least", [(torch.float32, 120), (torch.bfloat16, 44)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_enlarging_behind_the_product_equals_enlarging_before(dtype, least, layout):
    needs(dtype)
    torch.manual_seed(0)
    plain = Upsample(8, nn).to(dtype).requires_grad_(False)
    fast = strips.in_strips(copy.deepcopy(plain))
    x = torch.randn(2, 8, 5, 6).to(dtype).contiguous(memory_format=layout)
    exact = plain.double()(x.double())
    with torch.no_grad():
        found = fast(x)
    assert found.dtype == dtype and found.shape == exact.shape and found.is_contiguous(memory_format=layout)
    assert decibels(found, exact, (0, 1)) > least
    assert type(strips.out_of_strips(fast)) is Upsample and "forward" not in vars(fast)


@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize("dtype, least", [(torch.float32, 110), (torch.bfloat16, 50)])
def test_norms_of_short_rows(dtype, least, amx, monkeypatch):
    """Also of rows whose mean is far from 0, of flat ones, and of those that are all zero."""
    monkeypatch.setattr(norms, "in_tiles", lambda dtype: amx)
    torch.manual_seed(0)
    x = torch.randn(64, 48) * torch.rand(64, 1) + 3 * torch.randn(64, 1)
    x[0], x[1] = 0, 0.5
    x = x.to(dtype)
    exact = nn.functional.layer_norm(x.double(), (48,), eps=1e-6)
    found = norms.normalized(x, 1e-6)
    assert found.dtype == dtype and not found[:2].any()
    assert decibels(found, exact) > least


def test_the_autoencoder_keeps_rows_of_channels_while_accelerated():
    """In float32 too, where the plain one does not; what it says stays the same to rounding."""
    needs(torch.float32)
    torch.manual_seed(0)
    vae = AutoencoderKL(dataclasses.replace(CONFIG, fidelity=None)).requires_grad_(False)
    x = torch.rand(2, 3, 32, 48) * 2 - 1
    plain = [vae.encode(x)[0], vae.decode(torch.ones(1, 4, 8, 12))]
    fast = accelerate(vae)
    found = [fast.encode(x)[0], fast.decode(torch.ones(1, 4, 8, 12))]
    assert fast.encoder(x)[1][0].is_contiguous(memory_format=torch.channels_last)
    assert all((a - b).abs().max() < 1e-4 * b.abs().max().clamp(min=0.1) for a, b in zip(found, plain))
    assert not restore(fast).encoder(x)[1][0].is_contiguous(memory_format=torch.channels_last)


def test_gradients_go_through_the_layers():
    """With gradients, and in another type, the block is the plain one."""
    plain = block(8, torch.float32)
    fast = strips.in_strips(copy.deepcopy(plain))
    x = torch.randn(1, 8, 6, 5, requires_grad=True)
    assert torch.equal(fast(x), plain(x)) and fast(x).requires_grad
    assert set(fast.state_dict()) == set(plain.state_dict())


@pytest.mark.parametrize("dtype, least", [(torch.float32, 110), (torch.bfloat16, 40)])
@pytest.mark.parametrize("pictures", [1, 2], ids=["blurred", "with the prior's"])
def test_the_branch_equals_its_layers(dtype, least, pictures):
    """All levels with their joins; the features lie in memory as the networks leave them in this type."""
    needs(dtype)
    torch.manual_seed(0)
    plain = FidelityBranch(BRANCH, CONFIG, nn, informed=True).requires_grad_(False)
    for layer in (plain.head, *plain.join_prior):
        layer.weight.normal_(std=0.1)
    decoded = [torch.randn(2, 32, 6, 10), torch.randn(2, 16, 12, 20)]
    encoded = [torch.randn(2, 16 * pictures, 12, 20), torch.randn(2, 96 * pictures, 6, 10)]
    fast = strips.in_strips(copy.deepcopy(plain).to(dtype))
    layout = torch.contiguous_format if dtype == torch.float32 else torch.channels_last
    exact = copy.deepcopy(plain.to(dtype)).double()([x.to(dtype).double() for x in decoded], [x.to(dtype).double() for x in encoded])
    with torch.no_grad():
        found = fast(*([x.to(dtype).contiguous(memory_format=layout) for x in features] for features in (decoded, encoded)))
    for ours, true in zip(found, exact, strict=True):
        assert ours.dtype == dtype and ours.shape == true.shape
        assert decibels(ours, true) > least


def test_who_listens_to_a_block_does_not_slow_the_joins_and_who_listens_to_a_join_is_heard(monkeypatch):
    torch.manual_seed(0)
    fast = strips.in_strips(FidelityBranch(BRANCH, CONFIG, nn).requires_grad_(False))
    decoded, encoded = [torch.randn(1, 32, 6, 10), torch.randn(1, 16, 12, 20)], [torch.randn(1, 16, 12, 20), torch.randn(1, 96, 6, 10)]
    plain, heard, real = [], [], FidelityBranch.forward
    monkeypatch.setattr(FidelityBranch, "forward", lambda *given: plain.append(1) or real(*given))
    for part in (fast.levels[0][1], fast.join[1]):
        handle = part.register_forward_pre_hook(lambda *_: heard.append(len(plain)))
        with torch.no_grad():
            fast(decoded, encoded)
        handle.remove()
    assert heard == [0, 1] and len(plain) == 1


@pytest.fixture(scope="module")
def network() -> Maxim:
    made, generator = Maxim((8, 16, 32)).eval().requires_grad_(False), torch.Generator().manual_seed(0)
    for name, p in made.named_parameters():
        p.copy_(torch.randn(p.shape, generator=generator) * (0.2 if p.ndim == 1 else 0.5 * p[0].numel() ** -0.5) + (".norm" in name))
    return made


def accelerated(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    needs(dtype)
    return accelerate(copy.deepcopy(network).to(dtype))


@torch.no_grad()
@pytest.mark.parametrize("dtype, least", [(torch.float32, 100), (torch.bfloat16, 30)])
@pytest.mark.parametrize("strip", [1, 2**20], ids=["smallest strips", "one strip"])
def test_blocks_equal_their_layers(network, dtype, least, strip, monkeypatch):
    """For several pictures, whose grid and blocks have cells of different sizes; in bfloat16 both round."""
    monkeypatch.setattr(maxim, "STRIP_BYTES", strip)
    stage, generator, blocks = network.stages[1], torch.Generator().manual_seed(1), {}
    for block in stage.modules():
        if type(block) in (MultiAxisMlp, GateWeights, CrossGating):
            channels = (block.norm_x if isinstance(block, CrossGating) else block.norm).normalized_shape[0]
            blocks.setdefault((type(block), channels), block)
    assert len(blocks) == 9
    for (kind, channels), block in blocks.items():
        fast, plain = accelerated(block, dtype), copy.deepcopy(block).double()
        given = [torch.randn(2, 32, 48, channels, generator=generator) * 2 + 1 for _ in range(1 + (kind is CrossGating))]
        outs, expected = fast(*(x.to(dtype) for x in given)), plain(*(x.to(dtype).double() for x in given))
        for out, wanted in zip(*(x if isinstance(x, tuple) else (x,) for x in (outs, expected))):
            assert out.dtype == dtype and decibels(out, wanted, (0, 1, 3)) > least, (kind, channels)          # column by column: no seam


def test_the_network_equals_its_layers_and_restored_it_is_the_plain_one(network):
    fast, picture = accelerated(network, torch.float32), torch.rand(1, 3, 64, 128, generator=torch.Generator().manual_seed(2))
    expected = copy.deepcopy(network).double()(picture.double())
    with torch.no_grad():
        assert (fast(picture) - expected).abs().max() < 1e-3 * (expected - picture).abs().max() < 1
    assert set(fast.state_dict()) == set(network.state_dict())
    block, plain = (next(part for part in each.modules() if isinstance(part, MultiAxisMlp)) for each in (fast, network))
    alike, x = torch.full((1, 32, 32, 8), 100.0), torch.randn(1, 32, 32, 8, requires_grad=True)
    with torch.no_grad():
        assert (block(alike) - plain(alike)).abs().max() < 0.1                 # channels that are all alike: no division by zero
    assert block(x).requires_grad and torch.allclose(block(x), plain(x), atol=1e-4)
    restore(fast)
    assert torch.equal(fast(picture), network(picture)) and [type(p) for p in fast.modules()] == [type(p) for p in network.modules()]
