"""Encode Blurred Clip and Decode Deblurred Frames with a tiny random model in the stand-in host."""
from types import SimpleNamespace

import pytest
import torch


def test_encode_and_decode(pack, frames, vae_and_encoders):
    """Shapes, alpha, tiles, refusals and the same frames as the one-node way's: tests/host. Here grey frames, and none."""
    vae, encoders = vae_and_encoders
    latents = pack.module("nodes.latents")
    positive, negative, latent = pack.nodes["VDDEncodeClip"].execute(frames, encoders, vae).result
    assert not negative[0][1][latents.IMAGE].any() and torch.equal(positive[0][1][latents.BLUR], negative[0][1][latents.BLUR])
    for more in ({}, {"blurred": frames[..., :1].clone(), "tile": 32, "tile_overlap": 8}):
        assert pack.nodes["VDDDecode"].execute(latent, vae, **more).result[0].shape == (5, 37, 45, 3)


def test_scenes_are_decoded_as_if_each_were_alone(pack, vae_and_encoders):
    vae, encoders = vae_and_encoders
    latents, generator = pack.module("nodes.latents"), torch.Generator().manual_seed(0)
    frames = torch.rand(7, 3, 6, 6, generator=generator)[[0, 0, 0, 0, 0, 1, 1]]
    frames = torch.nn.functional.interpolate(frames, size=(32, 48), mode="bicubic").clamp(0, 1).movedim(1, -1)
    latent = pack.nodes["VDDEncodeClip"].execute(frames, encoders, vae, scenes="auto", repeats="off").result[2]
    assert latent[latents.SCENES] == (0, 5, 7) and latents.scenes_of(latent) == [range(5), range(5, 7)]
    assert latents.scenes_of({**latent, "samples": latent["samples"][:, :, :6]}) == [range(6)]
    latent_of_one = pack.nodes["VDDEncodeClip"].execute(frames, encoders, vae, scenes="off", repeats="off").result[2]
    assert latents.scenes_of(latent_of_one) == [range(7)]

    def decode(part, **more):
        return pack.nodes["VDDDecode"].execute({"samples": latent["samples"][:, :, part], **more}, vae, frames[part]).result[0]

    whole = decode(slice(None), **{latents.SCENES: latent[latents.SCENES]})
    assert torch.equal(whole, torch.cat([decode(slice(0, 5)), decode(slice(5, 7))]))
    assert not torch.equal(whole, decode(slice(None)))


def test_a_frame_that_is_shown_again_is_worked_on_once(pack, frames, vae_and_encoders):
    """As in the one-node way: its latents are one, the decoder shows it as often as it came."""
    vae, encoders = vae_and_encoders
    encode, decode, latents = pack.nodes["VDDEncodeClip"].execute, pack.nodes["VDDDecode"].execute, pack.module("nodes.latents")
    order, clip = [0, 0, 1, 1, 1, 2, 3], frames[[0, 0, 1, 1, 1, 2, 3]].clone()
    clip[1, ..., 3] = 0.5                                            # alpha is not looked at, and stays each frame's own
    told, _, latent = encode(clip, encoders, vae, prior=clip[..., :3] * 0.5).result
    once, _, plain = encode(frames[:4], encoders, vae, prior=frames[:4, ..., :3] * 0.5).result
    assert torch.equal(latent["samples"], plain["samples"])
    assert latents.shown_of(latent) == [range(2), range(2, 5), range(5, 6), range(6, 7)]
    assert torch.equal(*(latents.with_pictures(each[0][1])[latents.BLUR] for each in (told, once)))
    shown, each = decode(latent, vae, clip).result[0], decode(plain, vae, frames[:4]).result[0]
    assert torch.equal(shown[..., :3], each[order][..., :3]) and torch.equal(shown[..., 3], clip[..., 3])
    assert torch.equal(decode(latent, vae).result[0], decode(plain, vae).result[0][order])
    mask = torch.arange(7.0).view(7, 1, 1, 1).expand(7, 1, 10, 12)
    assert latents.with_mask_per_frame({**latent, "noise_mask": mask}, 4)["noise_mask"][0, 0, :, 0, 0].tolist() == [0, 2, 5, 6]
    assert encode(clip, encoders, vae, repeats="off").result[2]["samples"].shape[2] == 7


def test_numbers_that_are_none_stop_the_graph(pack, frames, vae_and_encoders, monkeypatch):
    vae, encoders = vae_and_encoders
    broken = frames.clone()
    broken[4, 3, 3, 0] = float("nan")
    with pytest.raises(RuntimeError, match="frame 4 holds NaN"):
        pack.nodes["VDDEncodeClip"].execute(broken, encoders, vae)
    for odd in (frames[:0], frames[0], (frames * 255).byte()):
        with pytest.raises(RuntimeError, match=r"expected frames \(F, H, W, 3\), at least one, floating point"):
            pack.nodes["VDDEncodeClip"].execute(odd, encoders, vae)
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


def test_refused_settings_take_the_last_notices_away(pack, monkeypatch):
    notices, told = pack.module("nodes.notices"), []
    monkeypatch.setattr(notices, "_running", lambda: SimpleNamespace(node_id="9", prompt_id="p"))
    monkeypatch.setattr(notices, "_marked", {"9"})
    monkeypatch.setattr(notices.Notices, "_show", lambda self: told.append(list(self.lines)))
    with pytest.raises(RuntimeError, match="ensemble must be 1"):
        pack.module("nodes.streaming").DeblurVideo.execute(None, "", steps=2, ensemble=4)
    assert told == [[]]


def test_decode_takes_the_branch_of_how_the_latent_was_drawn(pack, frames, vae_and_encoders, monkeypatch):
    vae, encoders = vae_and_encoders
    latents, seen, model = pack.module("nodes.latents"), [], type(vae.vdd_decoder.model)
    decode = model.decode
    monkeypatch.setattr(model, "decode", lambda self, z, guide: seen.append(guide.detail) or decode(self, z, guide))
    samples = torch.randn(1, 4, 5, 10, 12)
    cases = [({latents.ONE_STEP: samples}, "auto", False),
             ({latents.ONE_STEP: None}, "auto", True),
             ({latents.ONE_STEP: samples.clone()}, "auto", True),       # another node's samples in a dict that went through Deblur Sampler
             ({}, "auto", True), ({}, "faithful", False), ({latents.ONE_STEP: samples}, "sampled", True)]
    for mark, detail, sampled in cases:
        seen.clear()
        pack.nodes["VDDDecode"].execute({"samples": samples, **mark}, vae, frames, detail=detail)
        assert set(seen) == {sampled}, (mark.keys(), detail)


def test_one_steps_estimate_can_be_turned(pack, frames, vae_and_encoders):
    """As the one-node way does; what a sampler has drawn, or another node made of it, cannot."""
    vae, encoders = vae_and_encoders
    decode, latents = pack.nodes["VDDDecode"].execute, pack.module("nodes.latents")
    told, _, latent = pack.nodes["VDDEncodeClip"].execute(frames, encoders, vae).result
    z = latent["samples"]
    latent = {**latent, latents.ONE_STEP: z, latents.ESTIMATE: z}
    assert (decode(latent, vae, frames).result[0] - decode(latent, vae, frames, ensemble=4).result[0]).abs().max() > 1e-4
    for more in ({}, {"tile": 32}, {"fidelity": 0.0}):
        mean = pack.nodes["VDDDeblurFrames"].execute(frames, "vdd-tiny.safetensors", ensemble=4, **more).result[0]
        assert (decode(latent, vae, frames, ensemble=4, **more).result[0] - mean).abs().max() < 1e-6, more
    for given, blurred in (({**latent, "samples": z.clone()}, frames), ({**latent, latents.ESTIMATE: None}, frames), (latent, None)):
        with pytest.raises(RuntimeError, match="ensemble must be 1 here"):
            decode(given, vae, blurred, ensemble=2)


def test_decode_tells_the_color_transfer_of_its_tiles(pack, frames, vae_and_encoders, monkeypatch):
    """What tiles disagree in is taken from the blurred frames; whole frames keep their own brightness."""
    vae, encoders = vae_and_encoders
    decoding, seen = pack.module("nodes.decoding"), []
    to_frames = decoding.to_frames
    monkeypatch.setattr(decoding, "to_frames", lambda *arguments: seen.append(arguments[-1]) or to_frames(*arguments))
    positive, _, latent = pack.nodes["VDDEncodeClip"].execute(frames, encoders, vae).result
    z = {**latent, "samples": positive[0][1][pack.module("nodes.latents").BLUR][:, :4]}
    for tile in (0, 32):
        pack.nodes["VDDDecode"].execute(z, vae, frames, tile=tile, tile_overlap=8)
    assert set(seen[:len(seen) // 2]) == {0} and set(seen[len(seen) // 2:]) == {32}


def test_room_is_asked_for_before_encoding(pack, frames, vae_and_encoders, monkeypatch):
    native, vae, encoders = pack.module("nodes.native"), *vae_and_encoders
    asked, host = [], pack.host["comfy.model_management"]
    monkeypatch.setattr(host, "load_models_gpu", lambda models, memory_required=0: asked.append(memory_required))
    told = pack.nodes["VDDEncodeClip"].execute(frames, encoders, vae).result[0][0][1]
    assert len(asked) == 1                                   # what one step shows is for those that ask, before the denoiser is there
    pack.module("nodes.native")._with_pictures(lambda model, shape, conds: conds, None, (), {"positive": [told], "negative": [told]})
    whole, size = pack.module("vdd_model.inference.tiles").Tiling(), frames.shape[1:3]
    padded = [n + -n % encoders.config.divisor for n in size]
    assert asked == [native.encode_memory(encoders.config, whole, *size, encoders.dtype),
                     native.decode_memory(encoders.config, native.FRAMES_PER_CHUNK, *padded, encoders.dtype, True)] and min(asked) > 0


def test_without_a_fidelity_branch_encoder_2_is_not_loaded(pack, frames, vae_and_encoders, monkeypatch):
    vae, encoders = vae_and_encoders
    loaded, host, autoencoder = [], pack.host["comfy.model_management"], vae.vdd_decoder.model.vae
    monkeypatch.setattr(host, "load_models_gpu", lambda models, memory_required=0: loaded.append(models))
    for branch in (autoencoder.fidelity, None):
        monkeypatch.setitem(autoencoder._modules, "fidelity", branch)
        pack.nodes["VDDDecode"].execute({"samples": torch.zeros(1, 4, 5, 10, 12)}, vae, frames)
    assert loaded == [[vae.patcher, encoders.spatial], [vae.patcher]]


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
        assert moves == sorted(moves) and len(looked) >= len(moves)
        assert moves[-1] == bar.reported[0][1] == 600
        assert len(set(moves)) >= (10 if name == "encode" else 60), len(set(moves))
        assert sum(preview is not None for *_, preview in bar.reported) == (0 if name == "encode" else 2)


@pytest.mark.parametrize(("grown", "size"), [((20, 24), (80, 96)), ((8, 8), (32, 32)), ((10, 12), (37, 45))])
def test_a_resized_latent_is_decoded_whole(pack, vae_and_encoders, grown, size):
    """The core's latent nodes hand on the other keys of a latent as they were."""
    vae, encoders = vae_and_encoders
    assert encoders.config.vae.factor == 4
    latent = {"samples": torch.randn(1, 4, 2, *grown), pack.module("nodes.latents").SIZE: (37, 45)}
    assert pack.nodes["VDDDecode"].execute(latent, vae).result[0].shape == (2, *size, 3)
