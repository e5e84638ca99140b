"""What a run with `compile: true` compiles, and whose minutes that takes. Nothing is compiled here: it takes minutes."""
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_config
from training_tools import NO_VALIDATION, STAGES, write_config

from train import config as configs
from train import loop, start
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


@pytest.mark.parametrize("compiled, count", [(True, 11), (False, 1)])
def test_compiling_and_validation_take_none_of_the_stages_minutes(tmp_path, monkeypatch, compiled, count):
    """Of 10 seconds: in the first step, a hundred of it, all is compiled."""
    now, steps, validated = [0.0], [], []

    def spend(seconds):
        now[0] += seconds

    def loss(self, *_):
        spend(1 if steps else 100)
        steps.append(1)
        return {"loss": sum(p.sum() for p in self.model.parameters() if p.requires_grad)}

    monkeypatch.setattr(StageLoss, "forward", loss)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(loop, "validate", lambda this, work: validated.append(this.position.step) or spend(100))
    stage = {key: value for key, value in STAGES[3].items() if key != "steps"} | {"minutes": 10 / 60}
    path = write_config(tmp_path, [stage], compile=compiled, validation={**NO_VALIDATION, "every": 3})
    run(configs.load(path), say=lambda text: None)
    assert len(steps) == count and validated == [*range(3, count, 3), count]
