"""The ablation: equal budgets, and a table from one command."""
import json
import re

import pytest
from training_tools import STAGES, write_config

from train import ablate
from train import config as configs
from train.ablate import main, variants
from vdd_model.config import ConfigError


def test_variants_have_equal_budgets_and_differ_where_they_say(tmp_path):
    config = configs.load(write_config(tmp_path))
    found = variants(config)
    assert list(found) == ["two stages", "one stage", "without encoder 2", "without coherence"]
    for stages in found.values():
        assert sum(s.steps * s.batch for s in stages if s.kind != "stage3") == 16
        assert [s.kind for s in stages if s.kind == "stage3"] == ["stage3"]
    assert [s.kind for s in found["one stage"]] == ["stage2", "stage3"]
    assert not any(p.startswith("encoder2") for s in found["without encoder 2"] for p in s.trainable)
    assert found["without encoder 2"][-1].trainable == ()               # the kind's own, whatever branches the model has
    assert all(s.loss.coherence == 0 for s in found["without coherence"][:2])
    rescaled = variants(configs.load(write_config(tmp_path, [*STAGES[:2], {**STAGES[2], "rescale": True}, *STAGES[3:]])))
    assert all(stages[0].rescale for stages in rescaled.values())       # on one scale, or their v losses cannot be compared
    with pytest.raises(ConfigError, match="one stage1"):
        variants(configs.load(write_config(tmp_path, STAGES[3:])))


@pytest.mark.parametrize("more", [[], ["--init", "some.safetensors"]])
def test_total_minutes_are_one_variants(tmp_path, monkeypatch, more):
    """The stages before the variants come on top."""
    stages = [{**stage, "steps": None, "minutes": minutes} for stage, minutes in zip(STAGES, (8, 2, 1, 5, 10))]
    seen = []
    monkeypatch.setattr(ablate, "ablate", lambda config, *_, **__: seen.append(config) or [])
    assert ablate.main([str(write_config(tmp_path, stages)), "--total-minutes", "4", *more]) == 0
    for found in variants(seen[0]).values():
        assert sum(stage.minutes for stage in found) == pytest.approx(4)


def test_one_command_gives_the_table(tmp_path, capsys):
    stages = [{**stage, "steps": 1, "batch": 1} for stage in (STAGES[0], STAGES[2], STAGES[3])]
    path = write_config(tmp_path, stages)
    assert main([str(path), "--out", str(tmp_path / "ablation")]) == 0
    assert re.search(r"\| one stage +\| +2 \|", capsys.readouterr().out)
    rows = json.loads((tmp_path / "ablation" / "ablation.json").read_text())
    assert [row["variant"] for row in rows] == ["two stages", "one stage", "without encoder 2", "without coherence"]
    assert all(row["steps"] == 2 and row["v"] > 0 and row["pairs_temporal"] > 0 for row in rows)
