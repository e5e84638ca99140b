"""Strict configurations: one clear sentence before any work."""
import dataclasses
import re
from pathlib import Path

import pytest
from training_tools import STAGES, write_config

from train import config as configs
from train.__main__ import main
from train.synthesis.config import BlurConfig
from vdd_model.config import ConfigError, preset

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_shipped_configurations_are_valid(path):
    config = configs.load(path)
    assert configs.model_config(config) == preset(config.preset)


def test_the_papers_numbers():
    stages = configs.load(CONFIGS[0].with_name("paper_gopro.yaml")).stages
    assert [s.kind for s in stages[:2]] == ["stage1", "stage2"]
    for stage in stages[:2]:
        assert (stage.lr, stage.betas, stage.frames, stage.crop, stage.loss.coherence) == (5e-5, (0.9, 0.999), 16, 256, 0.1)


@pytest.mark.parametrize("name", ["small", "small_cpu", "small_more", "single", "fusion"])
def test_shipped_configurations_ask_for_all_kinds_of_clips(name):
    """The fusion's lie in a pool, by the command at the head of its file; blur of 60 pixels needs crops of 256."""
    path = CONFIGS[0].with_name(f"{name}.yaml")
    config, values = configs.load(path), {}
    for text in re.findall(r"--set (\S+)", path.read_text()):
        configs.override(values, text)
    blur = BlurConfig(**values) if values else configs.blur_config(config, config.stages[-1])
    assert min(blur.single, blur.repeats, blur.hard_cuts, blur.still, blur.gopro) > 0
    assert blur.extent[1] == blur.max_step == 60.0 or config.stages[-1].crop < 256


def one(**changes) -> dict:
    """A run of one stage, of a step each."""
    return {"stages": [{"kind": "stage1", "steps": 1, **changes}]}


@pytest.mark.parametrize("changes, words", [
    (one(kind="stage9"), "stages[0].kind"),
    (one(steps=None), "steps or minutes"),
    (one(minutes=1.0), "steps or minutes"),
    (one(crop=33), "crop: 33"),
    (one(batch=3, accumulation=2), "accumulation"),
    (one(learning=1), "unknown key stages[0].'learning'"),
    (one(lose={}), "did you mean 'loss'"),
    (one(steps="many"), "stages[0].steps: expected int"),
    (one(blur={"extend": [1, 2]}), "did you mean 'extent'"),
    (one(trainable=["encoder3."]), "stages[0].trainable"),
    (one(batch=5, accumulation=5, loss={"coherance": 0}), "did you mean 'coherence'"),
    (one(kind="denoiser", rescale=True), "stages[0].rescale"),
    (one(optimizer="sgd"), "adamw or muon, found 'sgd'"),
    ({**one(optimizer="muon"), "fsdp": True}, "stages[0].optimizer: muon needs whole matrices"),
    ({"fsdp": True, "channels_last": True}, "channels_last: not with fsdp"),
    ({**one(), "fsdp": True}, "torchrun"),
    ({**one(), "trackers": ["tensorbord"]}, "trackers: "),
    ({"data": None}, "yaml: data: expected a mapping, found NoneType"),
    ({"sede": 1}, "did you mean 'seed'"),
    ({"preset": "smal"}, "no preset is called 'smal'"),
    ({"model": {"unet": {"dims": 3}}}, "did you mean 'dim'"),
    ({"root": "/nowhere"}, "there is no folder /nowhere/train_photos"),
    ({"validation": {"pairs": "mine"}}, "or go without it: --set validation.pairs="),
    ({"data": {"folder": "val_photos", "layout": "videos"}}, "no clips in the layout 'videos' of the split 'train'; the layout 'auto'"),
    ({"ema": 1.5}, "ema"),
    ({"save_every": 0}, "save_every: at least 1"),
    ({"log_every": 0}, "log_every: at least 1"),
    ({"data": {"workers": -1}}, "data.workers: at least 0"),
    ({"validation": {"frames": 0}}, "validation.frames: at least 1"),
    (one(steps=0), "steps and minutes must be positive"),
    (one(lr=-1.0), "stages[0].lr: at least 0"),
    (one(betas=[1, 2]), "stages[0].betas: two numbers in [0, 1)"),
    (one(prior_success=1.5), "stages[0].prior_success: a probability"),
    (one(blur={"cut": 0}), "cut and layer_counts must be positive"),
    ({"model": {"unet": {"dim": -1}}}, "model.unet.dim: at least 1"),
    ({"init": "/nowhere.safetensors"}, "no checkpoint /nowhere.safetensors"),
    ({"seed": 10**20}, "seed: 100000000000000000000 cannot be used"),
    ({"threads": 10**9}, "threads: at most"),
    (one(loss={"latent": -1}), "stages[0].loss.latent: at least 0"),
    ({"model": {"vae": {"patch_size": 0}}}, "model.vae.patch_size: at least 1"),
    ({"model": {"unet": {"spatial_conditions": ["x"]}}}, "model: no model can be built of it (KeyError: 'x')"),
    ({"data": {"split": "tset"}}, "no split is called 'tset'"),
    ({"validation": {"split": "tset"}}, "no split is called 'tset'"),
])
def test_mistakes_are_named_before_any_work(tmp_path, capsys, changes, words):
    assert main([str(write_config(tmp_path, **changes))]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_not_yaml_missing_file_and_missing_stages(tmp_path, capsys):
    assert main([str(tmp_path / "none.yaml")]) == 2 and "cannot read" in capsys.readouterr().err
    for text, words in (("stages: [", "not YAML"), ("seed: 1", "stages"), ("", "expected a mapping")):
        (tmp_path / "bad.yaml").write_text(text)
        assert main([str(tmp_path / "bad.yaml")]) == 2 and words in capsys.readouterr().err
    (tmp_path / "bad.yaml").write_bytes(b"\x89PNG\xff")
    assert main([str(tmp_path / "bad.yaml")]) == 2 and capsys.readouterr().err.count("\n") == 1


def test_set_changes_one_key(tmp_path):
    path = write_config(tmp_path)
    config = configs.load(path, ["stages.1.lr=2e-3", "validation.clips=3", "data.blur.extent=[1, 2]"])
    assert config.stages[1].lr == 2e-3 and config.validation.clips == 3
    stage = dataclasses.replace(config.stages[0], blur={"duty": [0.5, 0.6]})            # a stage's changes the run's
    assert configs.blur_config(config).extent == configs.blur_config(config, stage).extent == (1.0, 2.0)
    assert configs.blur_config(config, stage).duty == (0.5, 0.6)
    assert configs.load(path, ["validation.split="]).validation.split == ""
    for text, words in (("stages.9.lr=1", "no item"), ("seed", "KEY=VALUE"), ("stages.0.lr.x=1", "stages.0.lr has no keys"),
                        ("threads.x.y=1", "threads has no keys"), ("data.blur.extent=[1", "not YAML"),
                        ("stages.0.lr=.nan", "lr: nan cannot be used"), ("data.blur.max_step=.nan", "blur.max_step: nan cannot")):
        with pytest.raises(ConfigError, match=words):
            configs.load(path, [text])


def test_total_minutes_scales_the_stages(tmp_path):
    stages = [{**s, "minutes": float(i + 1)} for i, s in enumerate(STAGES)]
    for stage in stages:
        del stage["steps"]
    config = configs.scale_minutes(configs.load(write_config(tmp_path, stages)), 30)
    assert [s.minutes for s in config.stages] == [2, 4, 6, 8, 10]
    with pytest.raises(ConfigError, match="minutes"):
        configs.scale_minutes(configs.load(write_config(tmp_path)), 30)
    with pytest.raises(ConfigError, match="more than 0, found -5"):
        configs.scale_minutes(config, -5)
