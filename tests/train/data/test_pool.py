"""Pools of samples with a prior's frames, and stage 3 on them."""
import dataclasses
import json

import pytest
import torch
from conftest import make_tiny_model, tiny_config
from safetensors.torch import load_file, save_file
from training_tools import NO_VALIDATION, make_data, write_config

from train.config import StageConfig
from train.config import load as load_config
from train.data import __main__ as command
from train.data.clips import open_clips
from train.data.pool import FORMAT, PoolClips, is_pool, write_pool
from train.data.readers import DataError
from train.loop import run
from train.stages import StageLoss
from train.synthesis.scene import BlurConfig
from vdd_model.checkpoint.store import load
from vdd_model.config import FusionConfig


@pytest.fixture
def pool(tmp_path):
    """Samples of 2 frames of 64 pixels, some of them single, whose "prior" is a darker picture."""
    make_data(tmp_path / "data")
    source = open_clips(tmp_path / "data" / "train_photos", blur=BlurConfig(extent=(1.0, 4.0), max_subsamples=5, single=0.5))
    write_pool(source, tmp_path / "pool", lambda frames: frames / 2, count=8, seed=5, num_frames=2, size=64, say=lambda text: None)
    return tmp_path / "pool"


def test_samples_are_cut_alike_and_made_once(pool):
    save_file({"x": torch.zeros(1)}, pool.parent / "other.safetensors")
    assert is_pool(pool) and not is_pool(pool.parent / "data") and not is_pool(pool.parent)
    clips = PoolClips(pool)
    assert len(clips.clips) + len(clips.singles) == 8 and clips.clips and clips.singles
    lengths = set()
    for start in range(0, 40, 2):
        batch = clips.batch(1, [start, start + 1], num_frames=2, size=32, device="cpu")
        lengths.add(batch.blurred.shape[2])
        assert batch.blurred.shape == batch.sharp.shape == batch.prior.shape == (2, 3, batch.blurred.shape[2], 32, 32)
        assert (batch.prior - batch.blurred / 2).abs().max() < 1.5 / 255            # the same crop, turned alike
        again = PoolClips(pool).batch(1, [start, start + 1], num_frames=2, size=32, device="cpu")
        assert all(torch.equal(x, y) for x, y in zip(batch[:2], again[:2]))
    assert lengths == {1, 2}
    first = sorted(pool.glob("*.safetensors"))[0]
    stamp, kept = first.stat().st_mtime_ns, load_file(first)
    assert len(kept["blurred"]) in (1, 2) and kept["blurred"].dtype == torch.uint8
    source = open_clips(pool.parent / "data" / "train_photos")
    write_pool(source, pool, lambda frames: frames, count=8, seed=5, num_frames=2, size=64, say=lambda text: None)
    assert first.stat().st_mtime_ns == stamp


def test_a_sample_with_a_hard_cut_behind_its_first_frame_is_no_single_one(pool):
    source = open_clips(pool.parent / "data" / "train_photos", blur=BlurConfig(extent=(1.0, 4.0), max_subsamples=5, hard_cuts=1.0))
    write_pool(source, pool.parent / "cuts", lambda frames: frames, count=2, seed=5, num_frames=2, size=64, say=lambda text: None)
    clips = PoolClips(pool.parent / "cuts")
    assert len(clips.clips) == 2 and not clips.singles


def test_recorded_pairs_make_a_pool_too(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "need_prior", lambda path: path)
    monkeypatch.setattr(command.Prior, "load", lambda *_: lambda frames: frames / 2)
    root, out = make_data(tmp_path / "data") / "gopro_layout", tmp_path / "pool"
    asked = ["pool", str(root), "-o", str(out), "--count", "2", "--frames", "2", "--size", "16"]
    assert command.main(asked) == 2 and command.main([*asked, "--layout", "auto"]) == 0
    sample = load_file(out / "000001.safetensors")
    assert {value.shape for value in sample.values()} == {(2, 3, 16, 16)} and not torch.equal(sample["blurred"], sample["sharp"])


def test_what_cannot_be_read_is_named(pool):
    """At the start, and where it breaks later; another one is drawn in its place, the same in every process."""
    paths = sorted(pool.glob("*.safetensors"))
    whole = {path: load_file(path) for path in paths}
    paths[0].write_bytes(b"no tensors")
    paths[1].write_bytes(paths[1].read_bytes()[:-100])
    save_file({"blurred": whole[paths[2]]["blurred"]}, paths[2], metadata=FORMAT)
    save_file(whole[paths[3]] | {"prior": whole[paths[3]]["prior"][1:]}, paths[3], metadata=FORMAT)
    clips = PoolClips(pool)
    assert is_pool(pool) and list(clips.unreadable) == list(map(str, paths[:4])) and "shapes" in clips.unreadable[str(paths[3])]
    gone = (clips.clips if len(clips.clips) > 1 else clips.singles)[0]
    gone.unlink()
    drawn = {name for index in range(20) for name in clips.batch(1, [index], num_frames=2, size=32, device="cpu").names}
    assert str(gone) in clips.unreadable and drawn == set(map(str, paths[4:])) - {str(gone)}
    with pytest.raises(DataError, match="20 draws in a row met unreadable files; the last: .*too small for crops of 128"):
        PoolClips(pool).batch(1, [0], num_frames=1, size=128, device="cpu")
    for path in paths:
        path.write_bytes(b"no tensors")
    with pytest.raises(DataError, match="make it anew"):
        PoolClips(pool)


@pytest.mark.parametrize("trainable", [["vae.fusion."], ["vae.informed.", "vae.fusion."]], ids="+".join)
def test_stage_3_trains_what_reads_the_prior_on_a_pool_and_nothing_else(pool, trainable):
    folder = pool.parent
    config = tiny_config()
    config = dataclasses.replace(config, vae=dataclasses.replace(config.vae, informed=True, fusion=FusionConfig((8, 8), (1, 1))))
    stages = [{"kind": "stage3", "steps": 4, "batch": 2, "frames": 2, "crop": 32, "lr": 1e-3, "last_timestep": 1.0, "denoise": False,
               "trainable": trainable, "prior_success": 0.5}]
    path = write_config(folder, stages, model=dataclasses.asdict(config), root=str(folder), data={"folder": "pool"},
                        validation=NO_VALIDATION)
    out = run(load_config(path), say=lambda text: None)
    model = load(out, "cpu", torch.float32)
    assert any(p.any() for p in model.vae.fusion.head.parameters())
    assert any(p.any() for p in model.vae.informed.join_prior.parameters()) == ("vae.informed." in trainable)
    assert not any(p.any() for p in model.vae.fidelity.head.parameters())
    rows = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    assert sum(row["type"] == "step" for row in rows) == 4


def test_a_batch_sees_its_prior_or_not_and_may_find_it_better_than_it_is():
    sharp = torch.rand(1, 3, 1, 32, 32) * 2 - 1
    prior = torch.zeros_like(sharp)

    def seen(**changes):
        """How the prior is seen at 40 positions."""
        loss = StageLoss(make_tiny_model(), StageConfig(kind="stage3", **changes))
        return [loss._prior(prior, sharp, [p]) for p in range(40)]
    assert all(torch.equal(x, prior) for x in seen())
    dropped = sum(x is None for x in seen(prior_dropout=0.3))
    assert 4 <= dropped <= 20
    moved = [x for x in seen(prior_success=0.5) if not torch.equal(x, prior)]
    assert 10 <= len(moved) <= 30
    for x in moved:
        way = (x / sharp).median()
        assert 0.3 <= way <= 0.85 and torch.allclose(x, way * sharp, atol=1e-5)
