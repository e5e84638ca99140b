"""AutoencoderKL against the official code's golden values, and the fidelity branch."""
import copy
import dataclasses
import json

import pytest
import rounding
import torch
import torch.nn.functional as F
from conftest import golden_weights, official_shapes
from safetensors.torch import load_file

from vdd_model.config import AutoencoderConfig, preset
from vdd_model.networks.autoencoder import AutoencoderKL
from vdd_model.networks.fidelity import BlurGuide
from vdd_model.networks.layers import conv_stride_2

GOLDEN = AutoencoderConfig(channels=64, channel_mult=(1, 2, 2), blocks_per_level=1, fidelity=None)


@pytest.fixture(scope="module")
def golden(shared):
    io = load_file(shared / "golden" / "vae_small.io.safetensors")
    meta = json.loads((shared / "golden" / "meta.json").read_text())["vae_small"]
    vae = AutoencoderKL(GOLDEN)
    vae.load_state_dict(golden_weights(vae, meta["weight_seed"], meta["weight_scale"]))
    return vae.eval(), io


def test_full_size_keys_and_shapes(shared):
    with torch.device("meta"):
        vae = AutoencoderKL(AutoencoderConfig(fidelity=None))
    assert {k: v.shape for k, v in vae.state_dict().items()} == official_shapes(shared / "golden" / "keys_vae_sd.txt")


def test_golden_float64_and_traces_of_sub_blocks(golden):
    vae, seen, io = copy.deepcopy(golden[0]).double(), {}, golden[1]
    for name in (key.removeprefix("out.trace.") for key in io if key.startswith("out.trace.")):
        vae.get_submodule(name).register_forward_hook(lambda m, i, o, name=name: seen.update({name: o}))
    with torch.no_grad():
        mean, logvar = vae.encode(io["in.x"].double())
        decoded = vae.decode(io["in.z"].double())
    for name, value in (("mean", mean), ("logvar", logvar), ("decode", decoded)):
        reference = io[f"out.{name}_f64"]
        assert (value - reference).abs().max() <= 1e-8 * reference.abs().max(), name
    assert len(seen) == 19
    for name, value in seen.items():
        reference = io[f"out.trace.{name}"]
        assert (value[:1] - reference).abs().max() <= 2e-5 * reference.abs().max(), name


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@pytest.mark.parametrize("onednn", [True, False])
def test_golden_float32(golden, onednn):
    """With oneDNN's convolutions, as everybody runs it, and with PyTorch's plain ones."""
    vae, io = golden
    with torch.no_grad(), torch.backends.mkldnn.flags(enabled=onednn):
        mean, logvar = vae.encode(io["in.x"])
        decoded = vae.decode(io["in.z"])
    for name, value, part in (("mean", mean, vae.encoder), ("logvar", logvar, vae.encoder), ("decode", decoded, vae.decoder)):
        assert rounding.error(value, io[f"out.{name}_f64"], rounding.operations(part)) <= 1, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(golden, dtype):
    vae, io = golden
    with torch.no_grad():
        reference = vae.decode(io["in.z"])
        half = copy.deepcopy(vae).to(dtype).decode(io["in.z"].to(dtype)).float()
    assert (half - reference).square().mean().sqrt() < 0.05 * reference.square().mean().sqrt()


@pytest.fixture()
def vae():
    torch.manual_seed(0)
    return AutoencoderKL(preset("small").vae).eval()


def branch_inputs(vae, n=2, size=32):
    torch.manual_seed(0)
    x = torch.rand(n, 3, size, size) * 2 - 1
    _, features = vae.encoder(x)
    features = [*features[:-1], torch.cat([features[-1]] * 3, dim=1)]
    return torch.randn(n, 4, size // vae.config.factor, size // vae.config.factor), BlurGuide(x, features)


def test_fidelity_zero_is_exactly_the_plain_decoder_and_one_starts_as_the_blurred_frame(vae):
    with torch.no_grad():
        z, guide = branch_inputs(vae)
        assert torch.equal(vae.decode(z, guide._replace(strength=0.0)), vae.decode(z))
        assert torch.equal(vae.decode(z, guide), guide.pixels)
        half = vae.decode(z, guide._replace(strength=0.5))
    torch.testing.assert_close(half, (vae.decode(z) + guide.pixels) / 2)
    pytest.raises(ValueError, vae.decode, z, BlurGuide(guide.pixels, strength=0.5)).match("needs encoder 2's features")


def test_one_step_and_several_have_a_fidelity_branch_each_that_uses_blurred_features_neighbours_and_latents(vae):
    torch.nn.init.normal_(vae.fidelity.head.weight, std=0.05)
    torch.nn.init.normal_(vae.detail.head.weight, std=0.05)
    alone = AutoencoderKL(dataclasses.replace(vae.config, detail=False)).eval()
    alone.load_state_dict({name: value for name, value in vae.state_dict().items() if not name.startswith("detail.")})
    with torch.no_grad():
        z, guide = branch_inputs(vae)
        drawn = guide._replace(detail=True)
        one, several, (fine, coarse) = vae.decode(z, guide), vae.decode(z, drawn), guide.features
        neighbour = coarse.clone()
        neighbour[:, :64] += 1                                    # frame t - 1
        for given in ((z + 1, guide), *((z, guide._replace(features=each)) for each in ([fine, neighbour], [fine + 1, coarse]))):
            assert not torch.allclose(one, vae.decode(*given))
        assert not torch.allclose(one, several, atol=1e-2)
        assert torch.equal(vae.decode(z, drawn._replace(strength=0.0)), vae.decode(z))
        assert all(torch.equal(alone.decode(z, each), one) for each in (guide, drawn))
        vae.detail.load_state_dict(vae.fidelity.state_dict())
        assert torch.equal(vae.decode(z, drawn), one)


def test_thumbnail_is_the_start_and_both_encoders_agree(vae):
    x = torch.rand(1, 3, 32, 48) * 2 - 1
    thumbnail = F.avg_pool2d(x, vae.config.factor)
    with torch.no_grad():
        mean, _ = vae.encode(x)
        torch.testing.assert_close(mean[:, :3], thumbnail)
        torch.testing.assert_close(vae.decode(mean), F.interpolate(thumbnail, scale_factor=4, mode="bilinear"))


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("padding", [0, 1])
def test_no_convolution_of_stride_2_has_an_output_one_column_wide(width, padding):
    """Where it would have one, two are made and one is kept, the same."""
    made, conv = [], torch.nn.Conv2d(4, 4, 3, stride=2, padding=padding)
    conv.register_forward_hook(lambda layer, given, out: made.append(out.shape[-1]))
    x = torch.randn(2, 4, 9, width + 2 * (1 - padding), generator=torch.Generator().manual_seed(0))
    expected = F.conv2d(x, conv.weight, conv.bias, 2, padding)
    torch.testing.assert_close(conv_stride_2(conv, x), expected)
    assert made == [max(2, expected.shape[-1])]
