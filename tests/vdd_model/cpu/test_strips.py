"""The picture path as the CPU runs it, in strips, equals the plain layers."""
import copy

import pytest
import torch
from torch import nn

from vdd_model.config import AutoencoderConfig, FidelityConfig
from vdd_model.cpu import accelerate, restore, strips
from vdd_model.cpu.norms import normalized
from vdd_model.cpu.onednn import supports
from vdd_model.networks.autoencoder import AutoencoderKL, Upsample
from vdd_model.networks.fidelity import FidelityBranch, GatedBlock


@pytest.fixture(autouse=True)
def small_pictures_too(monkeypatch):
    """What is tested here is small."""
    monkeypatch.setattr(strips, "WORTH", 0)


def needs(dtype: torch.dtype) -> None:
    if not supports(dtype):
        pytest.skip(f"oneDNN does not compute in {dtype} here")


def block(channels: int, dtype: torch.dtype) -> GatedBlock:
    """A block with random norms and biases too."""
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
    noise = (found.double() - exact).square().mean((0, 1, 3)) / exact.square().mean()       # row by row: no seam
    assert -10 * noise.max().log10() > least


@pytest.mark.parametrize("dtype, least", [(torch.float32, 120), (torch.bfloat16, 44)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_enlarging_behind_the_product_equals_enlarging_before(dtype, least, layout):
    """Borders too; in the layout that is given."""
    needs(dtype)
    torch.manual_seed(0)
    plain = Upsample(8, nn).to(dtype).requires_grad_(False)
    fast = strips.in_strips(copy.deepcopy(plain))
    x = torch.randn(2, 8, 5, 6).to(dtype).contiguous(memory_format=layout)
    exact = plain.double()(x.double())
    with torch.no_grad():
        found = fast(x)
    assert found.dtype == dtype and found.shape == exact.shape and found.is_contiguous(memory_format=layout)
    assert -10 * ((found.double() - exact).square().amax((0, 1)) / exact.square().mean()).max().log10() > least - 10
    assert type(strips.out_of_strips(fast)) is Upsample and "forward" not in vars(fast)


@pytest.mark.parametrize("dtype, least", [(torch.float32, 110), (torch.bfloat16, 50)])
def test_norms_of_short_rows(dtype, least):
    """Also of rows whose mean is far from 0, of flat ones, and of those that are all zero."""
    torch.manual_seed(0)
    x = torch.randn(64, 48) * torch.rand(64, 1) + 3 * torch.randn(64, 1)
    x[0], x[1] = 0, 0.5
    x = x.to(dtype)
    exact = nn.functional.layer_norm(x.double(), (48,), eps=1e-6)
    found = normalized(x, 1e-6)
    assert found.dtype == dtype and not found[:2].any()
    assert -10 * ((found.double() - exact).square().mean()).log10() > least


def test_the_autoencoder_keeps_rows_of_channels_while_accelerated():
    """In float32 too, where the plain one does not; what it says stays the same to rounding."""
    needs(torch.float32)
    torch.manual_seed(0)
    config = AutoencoderConfig(channels=16, channel_mult=(1, 2), patch_size=2, norm_groups=8, fidelity=None)
    vae = AutoencoderKL(config).requires_grad_(False)
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


CONFIG = AutoencoderConfig(channels=16, channel_mult=(1, 2), patch_size=2, norm_groups=8)
BRANCH = FidelityConfig(channels=(24, 16), blocks=(2, 1))


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
        assert -10 * ((ours.double() - true).square().mean() / true.square().mean()).log10() > least


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
