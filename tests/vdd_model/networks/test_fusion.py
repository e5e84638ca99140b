"""The fusion of the picture path's frame with a prior's."""
import dataclasses

import pytest
import torch
from conftest import make_tiny_model

from vdd_model.checkpoint.store import CheckpointError, load, save
from vdd_model.config import AutoencoderConfig, FidelityConfig, FusionConfig
from vdd_model.networks.autoencoder import AutoencoderKL
from vdd_model.networks.fidelity import BlurGuide
from vdd_model.networks.fusion import PriorFusion

CONFIG = AutoencoderConfig(channels=16, channel_mult=(1, 2), blocks_per_level=1, patch_size=2, mid_attention=False, norm_groups=8,
                           fidelity=FidelityConfig((16, 8), (1, 1)), fusion=FusionConfig((8, 12, 16), (1, 1, 1), residual=True))


@pytest.fixture
def vae():
    """A small autoencoder with a fidelity branch that does something, and an untrained fusion."""
    torch.manual_seed(0)
    vae = AutoencoderKL(CONFIG).eval()
    torch.nn.init.normal_(vae.fidelity.head.weight, std=0.05)
    return vae


def inputs(size: int = 32):
    pixels, z = torch.rand(2, 3, size, size) * 2 - 1, torch.randn(2, 4, size // 4, size // 4)
    features = [torch.randn(2, 16, size // 2, size // 2), torch.randn(2, 96, size // 4, size // 4)]
    return z, BlurGuide(pixels, features)


@torch.no_grad()
def test_an_untrained_fusion_is_the_mean_and_without_a_prior_nothing_changes(vae):
    z, guide = inputs()
    prior = torch.rand(2, 3, 32, 32) * 2 - 1
    ours = vae.decode(z, guide)
    assert torch.allclose(vae.decode(z, guide._replace(prior=prior)), (ours + prior) / 2, atol=1e-6)
    plain = AutoencoderKL(dataclasses.replace(CONFIG, fusion=None)).eval()
    plain.load_state_dict({name: value for name, value in vae.state_dict().items() if not name.startswith("fusion.")})
    assert torch.equal(plain.decode(z, guide), ours)
    assert torch.equal(plain.decode(z, guide._replace(prior=prior)), ours)             # nothing there that could join them
    torch.nn.init.normal_(vae.fusion.residual.weight)
    assert not torch.allclose(vae.decode(z, guide._replace(prior=prior)), (ours + prior) / 2, atol=1e-2)
    vae.fusion.head.bias[:] = 30.0                                                   # trusts the prior alone: no residual either
    assert torch.allclose(vae.decode(z, guide._replace(prior=prior)), prior, atol=1e-5)
    half = vae.decode(z, guide._replace(prior=prior, strength=0.5))
    assert torch.allclose(half, (vae.decode(z) + prior) / 2, atol=1e-5)


@torch.no_grad()
def test_a_trained_fusion_looks_at_all_it_is_given_and_only_at_what_is_near():
    torch.manual_seed(1)
    fusion = PriorFusion(FusionConfig((8, 12, 16), (1, 1, 1)), 8, 2, torch.nn).eval()
    for parameter in fusion.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    state, *pictures = torch.randn(1, 8, 64, 64), *(torch.rand(3, 1, 3, 128, 128) * 2 - 1)
    out = fusion(state, *pictures)
    for changed in range(4):
        given = [x.clone() for x in (state, *pictures)]
        given[changed][..., -2:, -2:] += 0.5                 # the last corner
        difference = (fusion(*given) - out).abs().amax(1)[0]
        assert difference[-8:, -8:].max() > 1e-4
        assert difference[:32, :32].max() == 0               # tiles that overlap by 64 pixels and more agree


def test_weights_of_before_it_load_without_it_and_a_model_with_it_names_what_is_missing(tmp_path):
    model = make_tiny_model()
    save(model, tmp_path / "old.safetensors")
    assert load(tmp_path / "old.safetensors", "cpu", torch.float32).vae.fusion is None
    model.config = dataclasses.replace(model.config, vae=dataclasses.replace(model.config.vae, fusion=FusionConfig()))
    save(model, tmp_path / "missing.safetensors")
    pytest.raises(CheckpointError, load, tmp_path / "missing.safetensors", "cpu", torch.float32).match("vae.fusion")
