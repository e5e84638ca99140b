"""What a run with `compile: true` compiles, and whose minutes that takes. Nothing is compiled here: it takes minutes."""
import time
from pathlib import Path

import torch
from conftest import tiny_config
from training_tools import NO_VALIDATION, STAGES, write_config

from train import config as configs
from train import start
from train.loop import run
from train.stages import StageLoss
from vdd_model.networks.model import DeblurModel

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def test_a_stage_that_asks_for_it_runs_eagerly(tmp_path):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    stages = [{**STAGES[0], "compile": False}, {**STAGES[3], "compile": False}]         # and what the autoencoder's end measures
    path = write_config(tmp_path, stages, compile=True, validation=NO_VALIDATION)
    assert run(configs.load(path), say=lambda text: None) is not None
    assert not torch._dynamo.utils.counters["stats"]


def test_what_is_compiled_has_fixed_shapes(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: asked.append(options))
    monkeypatch.setattr(torch, "compile", lambda function, **options: asked.append(options) or function)
    config = configs.load(CONFIGS / "small.yaml")
    start.prepare_model(DeblurModel(tiny_config()), config, torch.device("cpu"))
    assert asked and all(options == {"dynamic": False} for options in asked)


def test_the_first_step_compiles_and_takes_none_of_the_stages_minutes(tmp_path, monkeypatch):
    steps = []

    def loss(self, *_):
        """A step that takes longer than its stage, as one that compiles may."""
        time.sleep(0.5 if not steps else 0.0)
        steps.append(1)
        return {"loss": sum(p.sum() for p in self.model.parameters() if p.requires_grad)}

    monkeypatch.setattr(StageLoss, "forward", loss)
    stage = {key: value for key, value in STAGES[3].items() if key != "steps"} | {"minutes": 0.1 / 60}
    for compiled in (True, False):
        steps.clear()
        path = write_config(tmp_path / str(compiled), [stage], compile=compiled, validation=NO_VALIDATION)
        run(configs.load(path), say=lambda text: None)
        assert (len(steps) > 1) == compiled
