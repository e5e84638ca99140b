"""What other nodes hang into the UNet's layers (tests/host has each kind of patch), and one step without its call."""
from types import SimpleNamespace

import pytest
import torch


@pytest.fixture()
def unet(pack, tiny_model):
    unet = pack.module("nodes.native").HostUNet(tiny_model.config)
    unet.load_state_dict({**tiny_model.unet.state_dict(), **{f"adapter.{k}": v for k, v in tiny_model.adapter.state_dict().items()}})
    for name, value in unet.named_parameters():            # projections that start at zero hide what is behind them
        if "proj_out" in name or name.startswith("out."):
            torch.nn.init.normal_(value, 0, 0.1, generator=torch.Generator().manual_seed(0))
    return unet.requires_grad_(False)


@pytest.fixture()
def call(unet, tiny_model):
    """v of two branches of 3 frames, with these `transformer_options`."""
    generator = torch.Generator().manual_seed(0)
    x, blur = torch.randn(2, 2, 4, 3, 8, 8, generator=generator)
    images = torch.randn(2, 1, 3, 16, generator=generator)

    def call(options=None, control=None):
        return unet(x, torch.tensor([500.0, 500.0]), tiny_model.null_text.expand(2, -1, -1), control, options, vdd_blur=blur,
                    vdd_image=images)
    return call


def test_fewer_and_cut_tokens(call):
    """As HyperTile (pieces of a picture are pictures of the batch) and token merging do."""
    def cut(q, k, v, extra):
        return (q.unflatten(1, (2, -1)).flatten(0, 1) if q.shape[1] % 2 == 0 else q), k, v

    def whole(n, extra):
        return n.unflatten(0, (6, -1)).flatten(1, 2)

    assert torch.isfinite(call({"patches": {"attn1_patch": [cut], "attn1_output_patch": [whole]}})).all()


def test_a_halved_picture_meets_its_skip_connection(call):
    """Deep Shrink, without the node's own way back."""
    def halve(h, options):
        return torch.nn.functional.avg_pool2d(h, 2) if options["block"] == ("input", 0) else h

    assert call({"patches": {"input_block_patch_after_skip": [halve]}}).shape == (2, 4, 3, 8, 8)


def test_what_has_no_place_is_refused(call):
    """Other kinds, and blocks without attention: tests/host."""
    def sag(q, k, v, extra):
        return q

    sag.__module__ = "/ComfyUI/comfy_extras/nodes_sag"
    for options, words in (({"patches_replace": {"dit": {("double_block", 7): 1}}}, r"changes layers \(dit\)"),
                           ({"patches_replace": {"attn1": {("middle", 0): sag}}}, "single pictures only")):
        with pytest.raises(RuntimeError, match=words):
            call(options)
    with pytest.raises(RuntimeError, match="ControlNet"):
        call(control={"output": []})
    torch.testing.assert_close(call({"patches": {"attn1_patch": []}}), call())


def test_one_step_is_the_estimate(pack, tiny_model, unet, monkeypatch):
    """As in the one-node way, and not where another node has changed the model. (Asked for, or with a mask: tests/host.)"""
    latents, node = pack.module("nodes.latents"), pack.nodes["VDDSampler"]
    config = tiny_model.config
    network = SimpleNamespace(diffusion_model=unet, manual_cast_dtype=None, get_dtype=lambda: torch.float32,
                              model_config=SimpleNamespace(sampling_settings={"zsnr": True}),
                              latent_format=SimpleNamespace(latent_channels=4, spacial_downscale_ratio=config.vae.factor),
                              process_latent_out=lambda x: x / config.vae.latent_scale)
    model = SimpleNamespace(model=network, patches={}, object_patches={}, wrappers={"prepare_sampling": {latents.PICTURES: [1]}},
                            load_device="cpu", model_options={"transformer_options": {}},
                            get_model_object=lambda name: getattr(network, name))
    blur, frames = torch.randn(1, 4, 5, 8, 8, generator=torch.Generator().manual_seed(0)), 5
    positive = [[tiny_model.null_text, {latents.BLUR: blur, latents.IMAGE: torch.zeros(1, 1, frames, 16)}]]
    latent = {"samples": torch.zeros(1, 4, frames, 8, 8)}
    out = node.execute(model, positive, positive, latent, 7, 1, 1.0, 0.0).result[0]
    torch.testing.assert_close(out["samples"], blur / config.vae.latent_scale)
    assert out[latents.ONE_STEP] is out["samples"]

    class Called(Exception):
        pass

    def sampler(*_, **__):
        raise Called
    monkeypatch.setattr(pack.module("nodes.hostsampler"), "WindowSampler", sampler)
    changed = SimpleNamespace(**{**vars(model), "patches": {"key": [1]}})
    wrapped = SimpleNamespace(**{**vars(model), "wrappers": {"apply_model": {"other": [1]}}})
    hooked = SimpleNamespace(**{**vars(model), "model_options": {"transformer_options": {"patches": {"attn1_patch": [1]}}}})
    more = [[tiny_model.null_text, {**positive[0][1], "strength": 0.5}]]
    for arguments, keywords in (((changed, positive), {}), ((wrapped, positive), {}), ((hooked, positive), {}), ((model, more), {}),
                                ((model, positive), {"spacing": "vgen"}), ((model, positive), {"guidance": 2.0})):
        with pytest.raises(Called):
            node.execute(*arguments, positive, latent, 7, 1, **{"guidance": 1.0, "eta": 0.0, **keywords})
