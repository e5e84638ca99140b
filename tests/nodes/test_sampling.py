"""Deblur Sampler, Deblur Sigmas and the host's UNet, as far as they need no sampling by the host; tests/host has the rest."""
from types import SimpleNamespace

import pytest
import torch

from tests.nodes.conftest import TINY, Cancelled


def test_the_hosts_unet_knows_windows_of_hosts_that_cut_no_conditioning(pack, tiny_model):
    unet = pack.module("nodes.native").HostUNet(tiny_model.config)
    unet.load_state_dict({**tiny_model.unet.state_dict(), **{f"adapter.{k}": v for k, v in tiny_model.adapter.state_dict().items()}})
    x, blur, images, t = torch.randn(1, 4, 3, 8, 8), torch.randn(1, 4, 5, 8, 8), torch.randn(1, 1, 5, 16), torch.tensor([500.0])
    options = {"context_window": SimpleNamespace(index_list=[1, 2, 3])}
    with torch.no_grad():
        cut = unet(x, t, tiny_model.null_text, transformer_options=options, vdd_blur=blur, vdd_image=images)
        torch.testing.assert_close(cut, unet(x, t, tiny_model.null_text, vdd_blur=blur[:, :, 1:4], vdd_image=images[:, :, 1:4]))
        with pytest.raises(RuntimeError, match="3 frames"):
            unet(x, t, tiny_model.null_text, vdd_blur=blur, vdd_image=images)


def test_parts_without_weights_are_never_filled(pack, monkeypatch):
    """A host with dynamic VRAM makes zeros for a linear layer that a checkpoint leaves out."""
    native, model = pack.module("nodes.native"), pack.module("vdd_model.networks.model").DeblurModel
    state, empty = pack.module("vdd_model.checkpoint.store").fitting(pack.models / "vdd" / TINY)
    rest = {k: v for k, v in state.items() if not k.startswith(native.DENOISER)}
    held, load = [], model.load_state_dict

    def watched(self, *arguments, **keywords):
        held.extend(name for name, _ in self.named_children())
        return load(self, *arguments, **keywords)

    monkeypatch.setattr(model, "load_state_dict", watched)
    native._assign(empty, rest, torch.float32)
    assert held == ["encoder1", "encoder2", "vae"]


def test_cutting_a_latent_cuts_its_mask(pack):
    latents = pack.module("nodes.latents")
    samples = torch.arange(10.0).view(1, 1, 10, 1, 1).expand(1, 4, 10, 2, 2)

    def cut(mask):
        return latents.cut_latent(latents.with_mask_per_frame({"samples": samples, "noise_mask": mask}, 8), 3, 6)

    per_frame = cut(torch.arange(10.0).view(10, 1, 1, 1).expand(10, 1, 16, 16))
    assert per_frame["samples"][0, 0, :, 0, 0].tolist() == per_frame["noise_mask"][0, 0, :, 0, 0].tolist() == [3, 4, 5]
    assert torch.equal(cut(torch.ones(1, 2, 2))["noise_mask"], torch.ones(1, 4, 3, 2, 2))
    halves = cut(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1))["noise_mask"][0, 0, :, 0, 0]        # two masks for ten frames: stretched
    torch.testing.assert_close(halves, torch.tensor([0.2, 0.4, 0.6]))
    assert set(latents.cut_latent(latents.with_mask_per_frame({"samples": samples}, 8), 3, 6)) == {"samples"}


@pytest.mark.parametrize("size", [(40, 52), (88, 72), (64, 64)])
def test_a_mask_lies_where_the_frames_do(pack, size):
    """Also where frames were padded: half of the picture is half of the pixels, not half of the padded ones."""
    latents, (height, width) = pack.module("nodes.latents"), size
    padded = [n + -n % 16 for n in size]
    mask = (torch.arange(width) >= width // 2).float().expand(2, height, width)
    latent = {"samples": torch.zeros(1, 4, 2, *(n // 4 for n in padded)), "noise_mask": mask, latents.SIZE: size}
    made = latents.with_mask_per_frame(latent, 4)["noise_mask"]
    assert made.shape == latent["samples"].shape
    edge = (made[0, 0, 0, 0] >= 0.5).nonzero()[0].item() * 4
    assert abs(edge - width // 2) <= 2


def test_cutting_a_conditioning_cuts_its_mask(pack):
    latents = pack.module("nodes.latents")
    extra = {latents.BLUR: torch.arange(10.0).view(1, 1, 10, 1, 1), "mask": torch.arange(10.0).view(10, 1, 1), "strength": 1.0}
    ((_, cut),) = latents.cut([[None, extra]], 3, 6, 10)
    assert cut[latents.BLUR].flatten().tolist() == cut["mask"].flatten().tolist() == [3, 4, 5] and cut["strength"] == 1.0
    assert latents.cut([[None, {"mask": torch.ones(1, 4, 4)}]], 3, 6, 10)[0][1]["mask"].shape == (1, 4, 4)


class WithoutFloat64(torch.Tensor):
    """As on a device that has no float64."""

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), keywords=None):
        out = super().__torch_function__(function, types, arguments, keywords or {})
        if function is torch.Tensor.cpu:
            return out.as_subclass(torch.Tensor)
        if isinstance(out, torch.Tensor) and out.dtype == torch.float64:
            raise TypeError("this device has no float64")
        return out


def test_sampling_needs_no_float64_on_the_device(pack):
    hostsampler = pack.module("nodes.hostsampler")
    sigmas = torch.linspace(0.03, 4000, 1000)
    there = sigmas.as_subclass(WithoutFloat64)
    with pytest.raises(TypeError, match="float64"):
        there.double()
    found = hostsampler.schedule_of(SimpleNamespace(sigmas=there))
    torch.testing.assert_close(found.alpha_bar, 1 / (sigmas.double() ** 2 + 1))
    a, s = hostsampler._scaled(there[500:501])
    assert abs(a * a + s * s - 1) < 1e-12 and abs(s / a - float(sigmas[500])) < 1e-6 * float(sigmas[500])


@pytest.mark.parametrize("node_id", ["VDDSampler", "VDDSigmas"])
def test_too_few_steps_for_the_official_spacing_are_refused(pack, node_id, monkeypatch):
    sampling = SimpleNamespace(sigmas=torch.linspace(0.03, 4000, 1000), latent_channels=4, spacial_downscale_ratio=4)
    model = SimpleNamespace(model=SimpleNamespace(diffusion_model=SimpleNamespace(adapter=None)), get_model_object=lambda name: sampling)
    given = {"positive": [], "negative": [], "latent": {"samples": torch.zeros(1, 4, 2, 8, 8)}, "seed": 0, "guidance": 1.0, "eta": 0.0}
    with pytest.raises(RuntimeError, match="'vgen' needs at least 4 steps, not 1"):
        pack.nodes[node_id].execute(model, steps=1, spacing="vgen", **(given if node_id == "VDDSampler" else {}))


def test_cancel_is_looked_at_in_every_step(pack, monkeypatch):
    """Whether or not the host's progress bar, which leaves steps out, passes it on."""
    hostsampler = pack.module("nodes.hostsampler")

    class Guider:
        def __init__(self, model):
            self.set_conds = self.set_guidance = lambda *_: None

        def sample(self, noise, samples, *_, callback, **__):
            callback(0, samples, samples, 1)

    def cancel():
        raise Cancelled

    monkeypatch.setattr(hostsampler, "Guider", Guider)
    monkeypatch.setattr(hostsampler.comfy.samplers, "KSAMPLER", lambda *_: None, raising=False)
    monkeypatch.setattr(hostsampler.latent_preview, "prepare_callback", lambda model, steps: lambda *_: None, raising=False)
    monkeypatch.setattr(pack.host["comfy.model_management"], "throw_exception_if_processing_interrupted", cancel)
    network = SimpleNamespace(sigmas=torch.linspace(0.03, 4000, 1000), num_blocks=3, tick=None)
    model = SimpleNamespace(get_model_object=lambda name: network)
    run = hostsampler.WindowSampler(model, 1.0, 0.0, (0.0, 1.0), 0.0, 1, "trailing", 0, 1)
    with pytest.raises(Cancelled):
        run.window([], [], {"samples": torch.zeros(1, 4, 2, 8, 8)}, lambda step: torch.zeros(1, 4, 2, 8, 8))
    assert network.tick is None


def test_preview_colors_follow_the_autoencoder(pack):
    """Of one whose latents are mixtures of the colors, the colors come back."""
    mixture, shift = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0.1, 0.2, 0.3, 0.4])

    def encode(images):
        colors = torch.nn.functional.avg_pool2d(images, 8)
        return ((torch.einsum("lc,nchw->nlhw", mixture, colors) + shift[:, None, None]) / 5,)

    model = SimpleNamespace(vae=SimpleNamespace(encode=encode, post_quant_conv=torch.nn.Conv2d(4, 4, 1)),
                            config=SimpleNamespace(vae=SimpleNamespace(factor=8, latent_scale=5)))
    factors, bias = pack.module("nodes.native").latent_rgb(model)
    colors = torch.rand(10, 3) * 2 - 1
    torch.testing.assert_close((colors @ mixture.T + shift) @ torch.tensor(factors) + torch.tensor(bias), colors, rtol=0, atol=1e-4)
