"""Deblur Prior, and its frames on their way to the decoder."""
import gc
from types import SimpleNamespace

import pytest
import torch

from tests.nodes.conftest import TINY
from vdd_model.checkpoint.maxim import FILE_NAME
from vdd_model.checkpoint.tensorfile import write_tensors
from vdd_model.config import FusionConfig
from vdd_model.inference.temporal import joined_over_time
from vdd_model.networks.fusion import PriorFusion
from vdd_model.networks.maxim import Maxim
from vdd_model.networks.temporal import TemporalFusion


@pytest.fixture()
def frames():
    return torch.rand(3, 37, 45, 4, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25


@pytest.fixture()
def prior_file(pack):
    """A narrow random prior in models/vdd."""
    network = Maxim((4, 4, 4))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
    path = pack.models / "vdd" / FILE_NAME
    write_tensors(path, network.state_dict(), {"vdd.prior": "maxim"})
    yield path
    path.unlink()


def test_the_node_keeps_number_size_and_alpha(pack, frames, prior_file, monkeypatch):
    node, folders = pack.nodes["VDDPrior"], pack.module("nodes.folders")
    assert node.fingerprint_inputs() == (str(prior_file), prior_file.stat().st_mtime)
    assert FILE_NAME not in folders.names()                    # it is no checkpoint to choose
    out = node.execute(frames).result[0]
    assert out.shape == frames.shape and torch.equal(out[..., 3], frames[..., 3]) and not torch.equal(out, frames)
    assert torch.equal(node.execute(frames[1:2, ..., :3]).result[0], out[1:2, ..., :3])
    made, prior = [], pack.module("vdd_model.inference.prior").Prior
    monkeypatch.setattr(prior, "_one", lambda self, frame, one=prior._one: made.append(1) or one(self, frame))
    assert torch.equal(node.execute(frames[[0, 0, 1, 1, 1]]).result[0], out[[0, 0, 1, 1, 1]])
    assert len(made) == 2                                                          # what is shown again is computed once
    broken = frames.clone()
    broken[1, 0, 0, 0] = float("inf")
    with pytest.raises(RuntimeError, match="frame 1 holds NaN or infinite values"):
        node.execute(broken)


def test_without_its_file_one_sentence_says_how_to_get_it(pack, frames, monkeypatch):
    monkeypatch.setattr(pack.module("vdd_model.inference.prior"), "__file__", str(pack.models / "a" / "b" / "c.py"))
    with pytest.raises(RuntimeError, match="make prior.*models/vdd.*vdd convert maxim"):
        pack.nodes["VDDPrior"].execute(frames)
    assert pack.nodes["VDDPrior"].fingerprint_inputs() == ()


def test_the_decoder_joins_its_frames_with_the_priors(pack, frames, vae_and_encoders, monkeypatch):
    vae, encoders = vae_and_encoders
    encode, decode = pack.nodes["VDDEncodeClip"], pack.nodes["VDDDecode"]
    native, latents = pack.module("nodes.native"), pack.module("nodes.latents")
    known = 1 - frames
    latent = encode.execute(frames, encoders, vae, known).result[2]
    plain = decode.execute(latent, vae, frames, color="none").result[0]              # a checkpoint without a fusion
    assert torch.equal(plain, decode.execute({**latent, latents.PRIOR: None}, vae, frames, color="none").result[0])
    model = native.need_deblur_vae(vae).model
    monkeypatch.setattr(model.vae, "fusion", PriorFusion(FusionConfig((8, 8), (1, 1)), 8, 2, torch.nn).eval().requires_grad_(False))
    joined = decode.execute(latent, vae, frames, color="none").result[0]
    inside = (plain > 0) & (plain < 1)
    assert inside[..., :3].float().mean() > 0.5 and (joined - (plain + known) / 2)[..., :3][inside[..., :3]].abs().max() < 1e-5
    assert torch.equal(joined, decode.execute({**latent, latents.PRIOR: None}, vae, frames, color="none", prior=known).result[0])
    turned = {**latent, latents.ESTIMATE: latent["samples"]}
    for given, ensemble in ((latent, 1), (turned, 4)):                                # by itself
        assert torch.equal(*(decode.execute(given, vae, frames, ensemble=n).result[0] for n in (-1, ensemble)))
    assert not torch.equal(decode.execute(turned, vae, frames).result[0], decode.execute(latent, vae, frames).result[0])
    shot = {**turned, latents.SCENES: (0, 3)}
    apart, cut = (decode.execute(given, vae, frames, ensemble=1).result[0] for given in (shot, turned))
    temporal = TemporalFusion(FusionConfig((8, 8), (1, 1)), torch.nn).eval().requires_grad_(False)
    temporal.head.weight.fill_(0.01)
    monkeypatch.setattr(model.vae, "temporal", temporal)                              # joins the frames of one step with their neighbours
    assert torch.equal(decode.execute(turned, vae, frames, ensemble=1).result[0], cut)                   # each a scene of its own
    found = decode.execute(shot, vae, frames, ensemble=1).result[0]

    def over_time(made: torch.Tensor) -> torch.Tensor:
        joined = joined_over_time(zip(range(3), made[..., :3], frames[..., :3]), temporal, torch.device("cpu"))
        return torch.stack([frame for _, frame in joined])
    assert torch.equal(found[..., :3], over_time(apart)) and not torch.equal(found, apart)
    alone = {**shot, latents.PRIOR: None}                                             # without the prior where it is asked for
    auto, on, off, never = (decode.execute(given, vae, frames, ensemble=1, temporal_fusion=setting).result[0]
                            for given, setting in ((alone, "auto"), (alone, "on"), (alone, "off"), (shot, "off")))
    assert torch.equal(auto, off) and torch.equal(on[..., :3], over_time(off)) and not torch.equal(on, off) and torch.equal(never, apart)
    with pytest.raises(RuntimeError, match="temporal_fusion must be auto or off here"):
        decode.execute(latent, vae, frames, temporal_fusion="on")
    assert torch.equal(decode.execute(latent, vae, frames, color="none").result[0], joined)
    for node, arguments in ((encode, (frames, encoders, vae)), (decode, (latent, vae, frames))):
        with pytest.raises(RuntimeError, match="prior has 2 frames of 45 x 37 pixels"):
            node.execute(*arguments, prior=known[:2])


@pytest.mark.parametrize("choice", ["maxim", "none", "auto"])
def test_the_one_node_way_finds_it_in_models_vdd(pack, frames, prior_file, monkeypatch, choice):
    native, asked = pack.module("nodes.native"), []
    monkeypatch.setattr(pack.module("vdd_model.inference.prior").PriorFile, "for_clip",
                        lambda self, options, *_: asked.append((self.path, options.prior)))
    pack.nodes["VDDDeblurFrames"].execute(frames, "vdd-tiny.safetensors", prior=choice)
    assert asked == [(prior_file, choice)]
    loaded = native.load_prior(prior_file)
    assert loaded.patcher.model is loaded.network and native.prior_memory(loaded, 37, 45) == native.PRIOR_VALUES * 64 * 64 * 4


def test_weights_stay_for_a_run_of_the_graph(pack, frames, prior_file, monkeypatch):
    """A list comes element by element: none of them loads again what the one before has."""
    native, read = pack.module("nodes.native"), []
    for owner, name in ((native.checkpoint, "fitting"), (native.Prior, "load")):
        load = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given, load=load, name=name: read.append(name) or load(*given))
    node = pack.nodes["VDDDeblurFrames"]
    other = pack.models / "vdd" / "other.safetensors"
    other.write_bytes((pack.models / "vdd" / TINY).read_bytes())
    for checkpoints, expected in (([TINY] * 3, ["fitting", "load"]), ([TINY, other.name, TINY], ["fitting", "load", "fitting", "fitting"])):
        read.clear()
        run = type("DynamicPrompt", (), {})()
        monkeypatch.setattr(node, "hidden", SimpleNamespace(dynprompt=run))
        monkeypatch.setattr(pack.nodes["VDDPrior"], "hidden", node.hidden)
        for checkpoint in checkpoints:
            node.execute(frames, checkpoint, prior="none")
            pack.nodes["VDDPrior"].execute(frames[:1])
        assert read == expected
    assert dict(native._kept)
    del run
    monkeypatch.undo()
    gc.collect()
    assert not dict(native._kept)                                 # nothing outlives its run
    other.unlink()
