"""The nodes themselves with a tiny random model: the stand-in host, no sampling by the host."""
from __future__ import annotations

import pytest
import torch

TINY = "vdd-tiny.safetensors"


@pytest.fixture()
def frames():
    return torch.rand(5, 37, 45, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def vae_and_encoders(pack):
    """The loader without its first output, which needs the host's model classes."""
    native, checkpoint = pack.module("nodes.native"), pack.module("vdd_model.checkpoint")
    kept, native._unet_patcher = native._unet_patcher, lambda *_: None
    try:
        return native.load(str(checkpoint.resolve(pack.models / "vdd" / TINY)))[1:]
    finally:
        native._unet_patcher = kept


def test_deblur_frames_keeps_number_size_and_alpha(pack, frames):
    out = pack.nodes["VDDDeblurFrames"].execute(frames, TINY, steps=1, guidance=1.0, fidelity=1.0, color="wavelet", seed=0).result[0]
    assert out.shape == frames.shape
    assert torch.equal(out[..., 3], frames[..., 3])
    assert out.min() >= 0 and out.max() <= 1


def test_progress_carries_previews(pack, frames):
    bar = pack.host["comfy.utils"].ProgressBar
    bar.reported.clear()
    pack.nodes["VDDDeblurFrames"].execute(frames, TINY, steps=1, guidance=1.0, fidelity=0.0, color="none", seed=0)
    value, total, _ = bar.reported[-1]
    assert (value, total) == (5, 5)
    assert any(preview is not None and preview[0] == "JPEG" for *_, preview in bar.reported)


def test_cancel_comes_through(pack, frames, monkeypatch):
    class Cancelled(Exception):
        pass

    def cancel():
        raise Cancelled

    monkeypatch.setattr(pack.host["comfy.model_management"], "throw_exception_if_processing_interrupted", cancel)
    with pytest.raises(Cancelled):
        pack.nodes["VDDDeblurFrames"].execute(frames, TINY, steps=1, guidance=1.0, fidelity=1.0, color="wavelet", seed=0)


def test_encode_and_decode(pack, frames, vae_and_encoders):
    vae, encoders = vae_and_encoders
    native = pack.module("nodes.native")
    positive, negative, latent = pack.nodes["VDDEncodeClip"].execute(frames, encoders, vae).result
    assert latent["samples"].shape == (1, 4, 5, 10, 12) and latent[native.SIZE] == (37, 45)
    assert positive[0][1][native.IMAGE].shape == (1, 1, 5, 16) and not negative[0][1][native.IMAGE].any()
    assert torch.equal(positive[0][1][native.BLUR], negative[0][1][native.BLUR])
    z = {**latent, "samples": positive[0][1][native.BLUR]}
    out = pack.nodes["VDDDecode"].execute(z, vae, frames).result[0]
    assert out.shape == frames.shape and torch.equal(out[..., 3], frames[..., 3])
    assert pack.nodes["VDDDecode"].execute(z, vae).result[0].shape == (5, 37, 45, 3)
    assert pack.nodes["VDDDecode"].execute(z, vae, frames[..., :1].clone(), tile=32, tile_overlap=8).result[0].shape == (5, 37, 45, 3)
    with pytest.raises(RuntimeError, match="connect the frames that were encoded"):
        pack.nodes["VDDDecode"].execute(z, vae, frames[:3])
    with pytest.raises(RuntimeError, match="image VAE"):
        pack.nodes["VDDDecode"].execute(z, object())


def test_encoding_equals_the_pipeline(pack, frames, vae_and_encoders, tiny_model):
    """The conditioning is what the package computes for the same frames."""
    from vdd_model.inference import to_pixels
    vae, encoders = vae_and_encoders
    native = pack.module("nodes.native")
    positive, _, _ = pack.nodes["VDDEncodeClip"].execute(frames, encoders, vae).result
    pixels = to_pixels(list(frames[..., :3]), tiny_model.config.divisor, torch.device("cpu"))
    with torch.no_grad():
        torch.testing.assert_close(positive[0][1][native.BLUR], tiny_model.encode_blurred(pixels).latents, rtol=0, atol=1e-5)
        semantic = tiny_model.encoder1.semantic(pixels[:, :, 2])
        torch.testing.assert_close(positive[0][1][native.IMAGE][0, 0, 2:3], semantic, rtol=0, atol=1e-5)


def test_the_hosts_unet_is_the_models(pack, tiny_model):
    native = pack.module("nodes.native")
    unet = native.HostUNet(tiny_model.config)
    state = {**tiny_model.unet.state_dict(), **{f"adapter.{k}": v for k, v in tiny_model.adapter.state_dict().items()}}
    unet.load_state_dict(state)
    x, blur, images = torch.randn(1, 4, 5, 8, 8), torch.randn(1, 4, 5, 8, 8), torch.randn(1, 1, 5, 16)
    t = torch.tensor([500.0])
    from vdd_model.model import Condition
    with torch.no_grad():
        expected = tiny_model.predict_v(x, t, Condition(tiny_model.adapter(blur), images[:, 0, 2]))
        found = unet(x, t, tiny_model.null_text, vdd_blur=blur, vdd_image=images)
        torch.testing.assert_close(found, expected)
        window = type("Window", (), {"index_list": [1, 2, 3]})()
        cut = unet(x[:, :, 1:4], t, tiny_model.null_text, transformer_options={"context_window": window}, vdd_blur=blur, vdd_image=images)
        torch.testing.assert_close(cut, unet(x[:, :, 1:4], t, tiny_model.null_text, vdd_blur=blur[:, :, 1:4], vdd_image=images[:, :, 1:4]))
        with pytest.raises(RuntimeError, match="Encode Blurred Clip"):
            unet(x, t, tiny_model.null_text)
        with pytest.raises(RuntimeError, match="4 frames"):
            unet(x[:, :, :4], t, tiny_model.null_text, vdd_blur=blur, vdd_image=images)


def test_cutting_a_latent_cuts_its_mask(pack):
    native = pack.module("nodes.native")
    samples = torch.arange(10.0).view(1, 1, 10, 1, 1).expand(1, 4, 10, 2, 2)
    per_frame = native.cut_latent({"samples": samples, "noise_mask": torch.arange(10.0).view(10, 1, 1)}, 3, 6)
    assert per_frame["samples"][0, 0, :, 0, 0].tolist() == per_frame["noise_mask"][:, 0, 0].tolist() == [3, 4, 5]
    assert native.cut_latent({"samples": samples, "noise_mask": torch.ones(1, 2, 2)}, 3, 6)["noise_mask"].shape == (1, 2, 2)


def test_checkpoint_folder(pack):
    folders, paths = pack.module("nodes.folders"), pack.host["folder_paths"]
    paths.add_model_folder_path("vdd", "/extra/place")
    folders.register()
    folders.register()
    assert paths.get_folder_paths("vdd") == [str(pack.models / "vdd"), "/extra/place"]
    assert folders.names() == [folders.BUILT_IN, TINY]
    with pytest.raises(RuntimeError, match="put the file .* into .*vdd"):
        folders.path_of("nothing.safetensors")


def test_compare_and_synthesize(pack):
    photo = torch.rand(1, 32, 40, 3, generator=torch.Generator().manual_seed(1))
    blurred, sharp = pack.nodes["VDDSynthesizeBlur"].execute(photo, 3, 4.0, 5).result
    assert blurred.shape == sharp.shape == (3, 32, 40, 3)
    out = pack.nodes["VDDCompare"].execute(sharp, sharp, blurred)
    table, panel, errors, score = out.result
    assert "PSNR" in table and panel.ndim == errors.ndim == 4 and score > 60
    assert len(out.ui["images"]) == 2
    with pytest.raises(RuntimeError, match="same number and size"):
        pack.nodes["VDDCompare"].execute(sharp, sharp[:2])


def test_preview_colours_follow_the_autoencoder(pack, tiny_model):
    factors, bias = pack.module("nodes.preview").latent_rgb(tiny_model)
    assert len(factors) == 4 and all(len(row) == 3 for row in factors) and len(bias) == 3


def test_schedule_and_sigmas_of_the_host(pack, tiny_model):
    from vdd_model.diffusion import make_schedule
    hostsampler = pack.module("nodes.hostsampler")
    alpha_bar = make_schedule(tiny_model.config.diffusion).alpha_bar.clamp_min(4.8973451890853435e-08)
    sampling = type("Sampling", (), {"sigmas": ((1 - alpha_bar) / alpha_bar).sqrt().float()})()
    torch.testing.assert_close(hostsampler.schedule_of(sampling).alpha_bar, alpha_bar, rtol=1e-5, atol=1e-9)
    sigmas = hostsampler.sigmas_of(sampling, pack.module("vdd_model.sampler").trailing_timesteps, 4)
    assert sigmas.tolist() == [*sampling.sigmas[[999, 749, 499, 249]].tolist(), 0.0]


WIDGETS = {"checkpoint": TINY, "steps": 1, "guidance": 1.0, "fidelity": 1.0, "color": "wavelet", "seed": 0, "window": 4, "overlap": 1}


def test_deblur_video_writes_once_and_finds_it_again(pack, tmp_path, monkeypatch):
    from fractions import Fraction

    from vdd_model.video import probe, write_video
    source = tmp_path / "clip.mp4"
    write_video(source, list(torch.rand(5, 32, 48, 3, generator=torch.Generator().manual_seed(0))), Fraction(30000, 1001))
    node, video = pack.nodes["VDDDeblurVideo"], pack.host["comfy_api.latest"].InputImpl.VideoFromFile
    found = node.execute(video(str(source)), **WIDGETS).result[0].file
    clip = probe(found)
    assert (clip.num_frames, clip.width, clip.height, clip.rate) == (5, 48, 32, Fraction(30000, 1001))
    assert str(pack.models / "output" / "deblurred") in found

    def never(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(pack.module("nodes.native"), "HostDeblurrer", never)
    assert node.execute(video(str(source)), **WIDGETS).result[0].file == found
    with pytest.raises(AssertionError, match="again"):
        node.execute(video(str(source)), **{**WIDGETS, "seed": 1})


def test_deblur_video_honours_a_trim_and_a_buffer(pack, tmp_path):
    import io

    from vdd_model.video import probe, write_video
    source = tmp_path / "clip.mp4"
    write_video(source, list(torch.rand(3, 32, 48, 3)), 24)
    node, video = pack.nodes["VDDDeblurVideo"], pack.host["comfy_api.latest"].InputImpl.VideoFromFile
    for given in (video(str(source), start_time=0.01), video(io.BytesIO(source.read_bytes()))):
        found = node.execute(given, **WIDGETS).result[0].file
        assert probe(found).num_frames == 3
        assert "clip" not in found.rpartition("/")[2]                # made from the host's cut or from the buffer, not from the file


def test_a_video_in_memory_stays_there(pack):
    latest = pack.host["comfy_api.latest"]
    parts = latest.Types.VideoComponents(images=torch.rand(3, 32, 48, 3), audio={"a": 1}, frame_rate=25)
    video = latest.InputImpl.VideoFromComponents(parts)
    out = pack.nodes["VDDDeblurVideo"].execute(video, **WIDGETS).result[0].components
    assert out.images.shape == (3, 32, 48, 3) and out.audio == {"a": 1} and out.frame_rate == 25
