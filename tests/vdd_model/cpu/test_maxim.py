"""The prior's blocks in strips equal the plain ones."""
import copy

import pytest
import torch
from torch import nn

from vdd_model.cpu import accelerate, maxim, restore
from vdd_model.cpu.onednn import supports
from vdd_model.networks.maxim import CrossGating, GateWeights, Maxim, MultiAxisMlp


@pytest.fixture(scope="module")
def network() -> Maxim:
    """A narrow network; its norms' weights and biases are random too."""
    made, generator = Maxim((8, 16, 32)).eval().requires_grad_(False), torch.Generator().manual_seed(0)
    for name, p in made.named_parameters():
        p.copy_(torch.randn(p.shape, generator=generator) * (0.2 if p.ndim == 1 else 0.5 * p[0].numel() ** -0.5) + (".norm" in name))
    return made


def accelerated(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    if not supports(dtype):
        pytest.skip(f"oneDNN does not compute in {dtype} here")
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
            noise = (out.double() - wanted).square().mean((0, 1, 3)) / wanted.square().mean()              # column by column: no seam
            assert out.dtype == dtype and -10 * noise.max().log10() > least, (kind, channels)


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
