"""The nodes themselves with a tiny random model: the stand-in host, no sampling by the host."""
from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

TINY = "vdd-tiny.safetensors"


class Cancelled(Exception):
    """What the host raises when the user presses Cancel."""


@pytest.fixture()
def frames():
    return torch.rand(5, 37, 45, 4, generator=torch.Generator().manual_seed(0))


def test_deblur_frames_keeps_number_size_and_alpha(pack, frames):
    out = pack.nodes["VDDDeblurFrames"].execute(frames, TINY, steps=1, guidance=1.0, fidelity=1.0, color="wavelet", seed=0).result[0]
    assert out.shape == frames.shape
    assert torch.equal(out[..., 3], frames[..., 3])
    assert out.min() >= 0 and out.max() <= 1


def test_the_ensemble_is_the_mean_over_orientations(pack, frames):
    def run(x, **more):
        return pack.nodes["VDDDeblurFrames"].execute(x, TINY, steps=1, guidance=1.0, fidelity=1.0, color="none", seed=0, **more).result[0]

    x = frames[:, :32, :32, :3]
    by_hand = (run(x) + run(x.transpose(1, 2)).transpose(1, 2)) / 2
    torch.testing.assert_close(run(x, ensemble=2), by_hand, rtol=0, atol=1e-5)
    assert (by_hand - run(x)).abs().max() > 1e-3


def test_the_bar_moves_within_a_window(pack, frames, monkeypatch):
    """With every call of the denoiser, of whose latents there are pictures before any frame is done; then of each decoded chunk."""
    monkeypatch.setattr(pack.module("nodes.progress"), "PREVIEW_SECONDS", 0.0)
    bar = pack.host["comfy.utils"].ProgressBar
    bar.reported.clear()
    frames = frames[:1] * torch.linspace(0.9, 1, 5).view(5, 1, 1, 1)              # one scene, and no frame shown twice
    pack.nodes["VDDDeblurFrames"].execute(frames, TINY, steps=4, guidance=1.0, fidelity=0.0, color="none", seed=0)
    moves = [value for value, *_ in bar.reported]
    assert moves == sorted(moves) and bar.reported[-1][:2] == (500, 500) and len(set(moves)) >= 8
    pictures = [(value, preview) for value, _, preview in bar.reported if preview is not None]
    assert len(pictures) == 4 + 1 and all(kind == "JPEG" and picture.size[0] > 4 for _, (kind, picture, _) in pictures)
    assert all(0 < value < 500 for value, _ in pictures[:4])


def test_cancel_comes_through(pack, frames, monkeypatch):
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
    with pytest.raises(RuntimeError, match="connect the latent of 'Encode Blurred Clip'"):
        pack.nodes["VDDDecode"].execute({"samples": torch.zeros(1, 16, 5, 10, 12)}, vae)


def test_scenes_are_decoded_as_if_each_were_alone(pack, vae_and_encoders):
    vae, encoders = vae_and_encoders
    native, frames = pack.module("nodes.native"), torch.rand(7, 3, 6, 6, generator=torch.Generator().manual_seed(0))[[0, 0, 0, 0, 0, 1, 1]]
    frames = torch.nn.functional.interpolate(frames, size=(32, 48), mode="bicubic").clamp(0, 1).movedim(1, -1)
    latent = pack.nodes["VDDEncodeClip"].execute(frames, encoders, vae, scenes="auto").result[2]
    assert latent[native.SCENES] == (0, 5, 7) and native.scenes_of(latent) == [range(5), range(5, 7)]
    assert native.scenes_of({**latent, "samples": latent["samples"][:, :, :6]}) == [range(6)]
    assert native.SCENES not in pack.nodes["VDDEncodeClip"].execute(frames, encoders, vae, scenes="off").result[2]

    def decode(part, **more):
        return pack.nodes["VDDDecode"].execute({"samples": latent["samples"][:, :, part], **more}, vae, frames[part]).result[0]

    whole = decode(slice(None), **{native.SCENES: latent[native.SCENES]})
    assert torch.equal(whole, torch.cat([decode(slice(0, 5)), decode(slice(5, 7))]))
    assert not torch.equal(whole, decode(slice(None)))


def test_numbers_that_are_none_stop_the_graph(pack, frames, vae_and_encoders, monkeypatch):
    vae, encoders = vae_and_encoders
    broken = frames.clone()
    broken[4, 3, 3, 0] = float("nan")
    with pytest.raises(RuntimeError, match="frame 4 holds NaN"):
        pack.nodes["VDDEncodeClip"].execute(broken, encoders, vae)
    samples = torch.randn(1, 4, 5, 10, 12)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="model's answer from frame 0 on is not a number"):
        patch.setattr(pack.module("nodes.decoding"), "decode_frames", lambda *_, **__: torch.full((1, 3, 5, 40, 48), float("nan")))
        pack.nodes["VDDDecode"].execute({"samples": samples}, vae, frames)
    samples[0, 2, 3, 4, 5] = float("inf")
    with pytest.raises(RuntimeError, match="latent holds values that are not numbers, from frame 3 on: they came out of the sampling; use"):
        pack.nodes["VDDDecode"].execute({"samples": samples}, vae, frames)


def test_the_sampler_behind_a_latent_is_found_in_the_graph(pack, monkeypatch):
    notices = pack.module("nodes.notices")
    monkeypatch.setattr(notices, "_running", lambda: SimpleNamespace(node_id="9", prompt_id="p"))
    custom = {"3": {"inputs": {"sampler": ["1", 0], "sigmas": ["2", 0]}}, "1": {"inputs": {"sampler_name": "heun"}},
              "2": {"inputs": {"scheduler": "beta", "steps": 4}}}
    plain = {"3": {"inputs": {"sampler_name": "lcm", "scheduler": "karras", "latent_image": ["1", 0]}},
             "1": {"inputs": {"sampler_name": "farther"}}}
    other = {"5": {"inputs": {"sampler_name": "of another input"}}, "9": {"inputs": {"latent": ["4", 0], "vae": ["5", 0]}},
             "4": {"inputs": {"samples": ["3", 0]}}}
    assert notices.sampled_by({**custom, **other}, "latent") == "sampler 'heun' and scheduler 'beta'"
    assert notices.sampled_by({**plain, **other}, "latent") == "sampler 'lcm' and scheduler 'karras'"
    assert notices.sampled_by(other, "latent") == notices.sampled_by(None, "latent") == ""


def test_decode_takes_the_branch_of_how_the_latent_was_drawn(pack, frames, vae_and_encoders, monkeypatch):
    vae, encoders = vae_and_encoders
    native, decoding, seen = pack.module("nodes.native"), pack.module("nodes.decoding"), []
    decode = decoding.decode_frames
    monkeypatch.setattr(decoding, "decode_frames",
                        lambda model, z, guide, *a, **k: seen.append(guide.detail) or decode(model, z, guide, *a, **k))
    samples = torch.randn(1, 4, 5, 10, 12)
    cases = [({native.ONE_STEP: samples}, "auto", False),
             ({native.ONE_STEP: None}, "auto", True),
             ({native.ONE_STEP: samples.clone()}, "auto", True),       # another node's samples in a dict that went through Deblur Sampler
             ({}, "auto", True), ({}, "faithful", False), ({native.ONE_STEP: samples}, "sampled", True)]
    for mark, detail, sampled in cases:
        seen.clear()
        pack.nodes["VDDDecode"].execute({"samples": samples, **mark}, vae, frames, detail=detail)
        assert set(seen) == {sampled}, (mark.keys(), detail)


def test_decode_tells_the_color_transfer_of_its_tiles(pack, frames, vae_and_encoders, monkeypatch):
    """What tiles disagree in is taken from the blurred frames; whole frames keep their own brightness."""
    vae, encoders = vae_and_encoders
    decoding, seen = pack.module("nodes.decoding"), []
    to_frames = decoding.to_frames
    monkeypatch.setattr(decoding, "to_frames", lambda *arguments: seen.append(arguments[-1]) or to_frames(*arguments))
    positive, _, latent = pack.nodes["VDDEncodeClip"].execute(frames, encoders, vae).result
    z = {**latent, "samples": positive[0][1][pack.module("nodes.native").BLUR]}
    for tile in (0, 32):
        pack.nodes["VDDDecode"].execute(z, vae, frames, tile=tile, tile_overlap=8)
    assert set(seen[:len(seen) // 2]) == {0} and set(seen[len(seen) // 2:]) == {32}


def test_room_is_asked_for_before_encoding(pack, frames, vae_and_encoders, monkeypatch):
    native, vae, encoders = pack.module("nodes.native"), *vae_and_encoders
    asked, host = [], pack.host["comfy.model_management"]
    monkeypatch.setattr(host, "load_models_gpu", lambda models, memory_required=0: asked.append(memory_required))
    pack.nodes["VDDEncodeClip"].execute(frames, encoders, vae)
    whole = pack.module("vdd_model.inference.window").Tiling()
    assert asked == [native.encode_memory(encoders.config, whole, *frames.shape[1:3], encoders.dtype)] and asked[0] > 0


def test_without_a_fidelity_branch_encoder_2_is_not_loaded(pack, frames, vae_and_encoders, monkeypatch):
    vae, encoders = vae_and_encoders
    loaded, host, autoencoder = [], pack.host["comfy.model_management"], vae.vdd_decoder.model.vae
    monkeypatch.setattr(host, "load_models_gpu", lambda models, memory_required=0: loaded.append(models))
    for branch in (autoencoder.fidelity, None):
        monkeypatch.setitem(autoencoder._modules, "fidelity", branch)
        pack.nodes["VDDDecode"].execute({"samples": torch.zeros(1, 4, 5, 10, 12)}, vae, frames)
    assert loaded == [[vae.patcher, encoders.spatial], [vae.patcher]]


def test_pictures_are_where_the_host_keeps_them(pack, monkeypatch):
    """With --gpu-only that is the GPU: a node that joins our pictures with others takes no two devices."""
    monkeypatch.setattr(pack.host["comfy.model_management"], "intermediate_device", lambda: torch.device("meta"))
    clip = torch.rand(2, 24, 32, 3)
    made = pack.nodes["VDDSynthesizeBlur"].execute(clip, 2, 4.0, 5).result + pack.nodes["VDDCompare"].execute(clip, clip).result[1:3]
    assert [image.device.type for image in made] == ["meta"] * 4


def test_encoding_equals_the_pipeline(pack, frames, vae_and_encoders, tiny_model):
    """The conditioning is what the package computes for the same frames."""
    from vdd_model.inference.window import to_pixels
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
    from vdd_model.networks.model import Condition
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


def test_other_nodes_get_around_the_unet(pack, tiny_model):
    """EasyCache and its like wrap the network's call; they find the host's options in the last place."""
    native = pack.module("nodes.native")
    unet = native.HostUNet(tiny_model.config)
    seen = []

    def wrapper(execute, *arguments, **keywords):
        seen.append(arguments[-1]["sigmas"])
        return 2 * execute(*arguments, **keywords)

    x, given = torch.randn(1, 4, 3, 8, 8), {"vdd_blur": torch.randn(1, 4, 3, 8, 8), "vdd_image": torch.randn(1, 1, 3, 16)}
    options = {"sigmas": 5, "wrappers": {"diffusion_model": {"mine": [wrapper]}}}
    with torch.no_grad():
        plain = unet(x, torch.tensor([500.0]), tiny_model.null_text, **given)
        torch.testing.assert_close(unet(x, torch.tensor([500.0]), tiny_model.null_text, transformer_options=options, **given), 2 * plain)
    assert seen == [5]


def test_a_context_window_leaves_the_text_whole(pack):
    """A host with context windows cuts axis 2 of what has as many entries there as the clip has frames: the text's is its width."""
    native = pack.module("nodes.native")
    text = torch.randn(1, 77, 128)
    tokens = native.TextTokens(text)
    assert tokens._copy_with(text[:, :, 3:19]).cond is text
    assert tokens._copy_with(text.repeat(2, 1, 1)).cond.shape == (2, 77, 128)


def test_the_host_can_load_the_denoiser_again(pack, monkeypatch):
    """For another GPU, and for hooks where it has dynamic VRAM."""
    native, checkpoint = pack.module("nodes.native"), pack.module("vdd_model.checkpoint.store")
    made = []

    def patcher(config, state, dtype, rgb, disable_dynamic):
        made.append((sorted(state), dtype, rgb, disable_dynamic))
        return SimpleNamespace(model=SimpleNamespace())

    monkeypatch.setattr(native, "_unet_patcher", patcher)
    model = native.load(str(checkpoint.resolve(pack.models / "vdd" / TINY)), "bfloat16")[0]
    function, arguments = model.cached_patcher_init
    assert function(*arguments).cached_patcher_init == function(*arguments, disable_dynamic=True).cached_patcher_init
    assert [m[3] for m in made] == [False, False, True] and made[0][:3] == made[1][:3] == made[2][:3]
    assert made[0][1] == torch.bfloat16 and "adapter.conv1.weight" in made[0][0] and "conv1.weight" not in made[0][0]


def test_parts_without_weights_are_never_filled(pack, monkeypatch):
    """A host with dynamic VRAM makes zeros for a linear layer that a checkpoint leaves out."""
    native, model = pack.module("nodes.native"), pack.module("vdd_model.networks.model").DeblurModel
    config, state = pack.module("vdd_model.checkpoint.store").read_state(pack.models / "vdd" / TINY)
    rest = {k: v for k, v in state.items() if not k.startswith(native.DENOISER)}
    held, load = [], model.load_state_dict

    def watched(self, *arguments, **keywords):
        held.extend(name for name, _ in self.named_children())
        return load(self, *arguments, **keywords)

    monkeypatch.setattr(model, "load_state_dict", watched)
    native._sides(config, rest, torch.float32)
    assert held == ["encoder1", "encoder2", "vae"]


def test_cutting_a_latent_cuts_its_mask(pack):
    native = pack.module("nodes.native")
    samples = torch.arange(10.0).view(1, 1, 10, 1, 1).expand(1, 4, 10, 2, 2)

    def cut(mask):
        return native.cut_latent(native.with_mask_per_frame({"samples": samples, "noise_mask": mask}, 8), 3, 6)

    per_frame = cut(torch.arange(10.0).view(10, 1, 1, 1).expand(10, 1, 16, 16))
    assert per_frame["samples"][0, 0, :, 0, 0].tolist() == per_frame["noise_mask"][0, 0, :, 0, 0].tolist() == [3, 4, 5]
    assert torch.equal(cut(torch.ones(1, 2, 2))["noise_mask"], torch.ones(1, 4, 3, 2, 2))
    halves = cut(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1))["noise_mask"][0, 0, :, 0, 0]        # two masks for ten frames: stretched
    torch.testing.assert_close(halves, torch.tensor([0.2, 0.4, 0.6]))
    assert set(native.cut_latent(native.with_mask_per_frame({"samples": samples}, 8), 3, 6)) == {"samples"}


@pytest.mark.parametrize("size", [(40, 52), (88, 72), (64, 64)])
def test_a_mask_lies_where_the_frames_do(pack, size):
    """Also where frames were padded: half of the picture is half of the pixels, not half of the padded ones."""
    native, (height, width) = pack.module("nodes.native"), size
    padded = [n + -n % 16 for n in size]
    mask = (torch.arange(width) >= width // 2).float().expand(2, height, width)
    latent = {"samples": torch.zeros(1, 4, 2, *(n // 4 for n in padded)), "noise_mask": mask, native.SIZE: size}
    made = native.with_mask_per_frame(latent, 4)["noise_mask"]
    assert made.shape == latent["samples"].shape
    edge = (made[0, 0, 0, 0] >= 0.5).nonzero()[0].item() * 4
    assert abs(edge - width // 2) <= 2


def test_cutting_a_conditioning_cuts_its_mask(pack):
    native = pack.module("nodes.native")
    extra = {native.BLUR: torch.arange(10.0).view(1, 1, 10, 1, 1), "mask": torch.arange(10.0).view(10, 1, 1), "strength": 1.0}
    ((_, cut),) = native.cut([[None, extra]], 3, 6, 10)
    assert cut[native.BLUR].flatten().tolist() == cut["mask"].flatten().tolist() == [3, 4, 5] and cut["strength"] == 1.0
    assert native.cut([[None, {"mask": torch.ones(1, 4, 4)}]], 3, 6, 10)[0][1]["mask"].shape == (1, 4, 4)


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


def test_the_bar_moves_by_parts_of_frames(pack, vae_and_encoders, monkeypatch):
    """With every tile; pictures of decoded frames come with it, and Cancel is looked at each time."""
    vae, encoders = vae_and_encoders
    bar, looked = pack.host["comfy.utils"].ProgressBar, []
    monkeypatch.setattr(pack.host["comfy.model_management"], "throw_exception_if_processing_interrupted", lambda: looked.append(1))
    monkeypatch.setattr(pack.module("nodes.progress"), "PREVIEW_SECONDS", 0.0)
    clip = torch.rand(6, 64, 64, 3)
    runs = {"encode": lambda: pack.nodes["VDDEncodeClip"].execute(clip, encoders, vae),
            "decode": lambda: pack.nodes["VDDDecode"].execute({"samples": torch.zeros(1, 4, 6, 16, 16)}, vae, clip, tile=32,
                                                              tile_overlap=16)}
    for name, run in runs.items():
        bar.reported.clear()
        looked.clear()
        run()
        moves = [value for value, *_ in bar.reported]
        assert moves == sorted(moves) and moves[-1] == 600 == bar.reported[0][1] and len(looked) >= len(moves)
        assert len(set(moves)) >= (5 if name == "encode" else 18), moves
        assert sum(preview is not None for *_, preview in bar.reported) == (0 if name == "encode" else 2)


def test_the_comparison_of_small_frames_can_be_read(pack):
    """Wide enough for its labels and the error map's scale; the table is in columns also as plain text."""
    photo = torch.rand(1, 60, 100, 3, generator=torch.Generator().manual_seed(1))
    table, panel, errors, _ = pack.nodes["VDDCompare"].execute(photo, photo.roll(1, 2), photo).result
    assert panel.shape[2] >= 3 * 240 and errors.shape[2] >= 240 and len({len(line) for line in table.splitlines()}) == 1
    assert errors[0, errors.shape[1] - 8].std() > 0.1                        # the strip of colors below the map
    assert table.splitlines()[1].startswith("| ---") and table.splitlines()[1].endswith("-: |")


def test_synthesizing_can_be_cancelled_and_shows_progress(pack, monkeypatch):
    photo, node = torch.rand(1, 24, 32, 3), pack.nodes["VDDSynthesizeBlur"]
    bar = pack.host["comfy.utils"].ProgressBar
    bar.reported.clear()
    node.execute(photo, 3, 4.0, 2**64 - 1)                                    # the largest seed of the widget
    assert [report[:2] for report in bar.reported] == [(100, 300), (200, 300), (300, 300)]

    def cancel():
        raise Cancelled

    monkeypatch.setattr(pack.host["comfy.model_management"], "throw_exception_if_processing_interrupted", cancel)
    with pytest.raises(Cancelled):
        node.execute(photo, 10000, 4.0, 5)


def test_the_seed_of_the_camera_is_explained_as_such(pack):
    (seed,) = (value for value in pack.nodes["VDDSynthesizeBlur"].GET_SCHEMA().inputs if value.id == "seed")
    assert "path" in seed.keywords["tooltip"] and "noise" not in seed.keywords["tooltip"]


@pytest.mark.parametrize(("grown", "size"), [((20, 24), (80, 96)), ((8, 8), (32, 32)), ((10, 12), (37, 45))])
def test_a_resized_latent_is_decoded_whole(pack, vae_and_encoders, grown, size):
    """The core's latent nodes hand on the other keys of a latent as they were."""
    vae, encoders = vae_and_encoders
    assert encoders.config.vae.factor == 4
    latent = {"samples": torch.randn(1, 4, 2, *grown), pack.module("nodes.native").SIZE: (37, 45)}
    assert pack.nodes["VDDDecode"].execute(latent, vae).result[0].shape == (2, *size, 3)


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


def test_a_latent_of_another_model_is_refused(pack):
    known = SimpleNamespace(latent_channels=4, spacial_downscale_ratio=4)
    model = SimpleNamespace(model=SimpleNamespace(diffusion_model=SimpleNamespace(adapter=None)), get_model_object=lambda name: known)
    with pytest.raises(RuntimeError, match=r"\(1, 16, 5, 8, 8\): connect the latent of 'Encode Blurred Clip'"):
        pack.nodes["VDDSampler"].execute(model, [], [], {"samples": torch.zeros(1, 16, 5, 8, 8)}, 0, 1, 1.0, 0.0)


@pytest.fixture()
def guider(pack, monkeypatch):
    """guider(options) -> guided x0 with a model whose x0 is 1 (positive) or 0 (negative); the host's own way is imitated."""
    hostsampler, host = pack.module("nodes.hostsampler"), pack.host["comfy.samplers"]
    monkeypatch.setattr(host, "calc_cond_batch", lambda model, conds, x, *_: [torch.full_like(x, float(c)) for c in conds], raising=False)

    def predict_noise(self, x, timestep, model_options, seed):
        yes, no = torch.ones_like(x), torch.zeros_like(x)
        x0 = no + self.cfg * (yes - no)
        if "sampler_cfg_function" in model_options:
            x0 = x - model_options["sampler_cfg_function"]({"input": x})
        for function in model_options.get("sampler_post_cfg_function", []):
            x0 = function({"denoised": x0, "input": x, "sigma": timestep, "cond_denoised": yes, "uncond_denoised": no})
        return x0

    monkeypatch.setattr(host.CFGGuider, "predict_noise", predict_noise, raising=False)
    made = hostsampler.Guider()
    sampling = SimpleNamespace(sigmas=torch.linspace(0.03, 4000, 1000), timestep=lambda sigma: torch.tensor([500]))
    made.inner_model, made.conds = SimpleNamespace(model_sampling=sampling), {"positive": 1, "negative": 0}

    def run(options, interval=(0.0, 1.0)):
        made.set_guidance(3.0, 0.0, interval)
        return made.predict_noise(torch.full((1, 4, 2, 2, 2), 0.5), torch.tensor([2.0]), options)

    return run


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
    model = SimpleNamespace(get_model_object=lambda name: SimpleNamespace(sigmas=torch.linspace(0.03, 4000, 1000)))
    spacing = pack.module("vdd_model.diffusion.sampler").trailing_timesteps
    run = hostsampler.WindowSampler(model, 1.0, 0.0, (0.0, 1.0), 0.0, 1, spacing, 0, 1)
    with pytest.raises(Cancelled):
        run.window([], [], {"samples": torch.zeros(1, 4, 2, 8, 8)}, lambda step: torch.zeros(1, 4, 2, 8, 8))


def test_guidance_nodes_of_the_host_act_in_our_sampler(guider):
    def close(found, expected):
        torch.testing.assert_close(found, torch.full((1, 4, 2, 2, 2), expected), rtol=0, atol=1e-5)

    close(guider({}), 3.0)
    close(guider({}, interval=(0.9, 1.0)), 1.0)
    close(guider({"sampler_post_cfg_function": [lambda args: args["denoised"] + 1]}), 4.0)
    close(guider({"sampler_post_cfg_function": [lambda args: args["denoised"] + 1]}, interval=(0.9, 1.0)), 2.0)
    close(guider({"sampler_cfg_function": lambda args: args["input"] - 7.0}), 7.0)


def test_preview_colors_follow_the_autoencoder(pack):
    """Of one whose latents are mixtures of the colors, the colors come back."""
    mixture, shift = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0.1, 0.2, 0.3, 0.4])

    def encode(images):
        colors = torch.nn.functional.avg_pool2d(images, 8)
        return ((torch.einsum("lc,nchw->nlhw", mixture, colors) + shift[:, None, None]) / 5,)

    model = SimpleNamespace(vae=SimpleNamespace(encode=encode, post_quant_conv=torch.nn.Conv2d(4, 4, 1)),
                            config=SimpleNamespace(vae=SimpleNamespace(factor=8, latent_scale=5)))
    factors, bias = pack.module("nodes.preview").latent_rgb(model)
    colors = torch.rand(10, 3) * 2 - 1
    torch.testing.assert_close((colors @ mixture.T + shift) @ torch.tensor(factors) + torch.tensor(bias), colors, rtol=0, atol=1e-4)


def test_schedule_and_sigmas_of_the_host(pack, tiny_model):
    from vdd_model.diffusion.schedule import make_schedule
    hostsampler = pack.module("nodes.hostsampler")
    alpha_bar = make_schedule(tiny_model.config.diffusion).alpha_bar.clamp_min(4.8973451890853435e-08)
    sampling = type("Sampling", (), {"sigmas": ((1 - alpha_bar) / alpha_bar).sqrt().float()})()
    torch.testing.assert_close(hostsampler.schedule_of(sampling).alpha_bar, alpha_bar, rtol=1e-5, atol=1e-9)
    sigmas = hostsampler.sigmas_of(sampling, pack.module("vdd_model.diffusion.sampler").trailing_timesteps, 4)
    assert sigmas.tolist() == [*sampling.sigmas[[999, 749, 499, 249]].tolist(), 0.0]
