"""What is settled before the first step."""
from __future__ import annotations

import pytest
import torch
from training_tools import NO_VALIDATION, STAGES, write_config

from train import config as configs
from train import start
from train.loop import run


@pytest.mark.parametrize("precision, has_bfloat16, trains_in", [
    ("bfloat16", False, "float32"), ("bfloat16", True, "bfloat16"), ("float32", False, "float32")])
def test_a_processor_without_bfloat16_trains_in_float32(tmp_path, monkeypatch, precision, has_bfloat16, trains_in):
    monkeypatch.setattr(start, "_on_cpu", lambda: True)
    monkeypatch.setattr(start, "cpu_has_bfloat16", lambda: has_bfloat16)
    config = configs.load(write_config(tmp_path, precision=precision))
    assert start.computable(config).precision == trains_in


def test_the_change_of_precision_is_said_and_nothing_runs_in_bfloat16(tmp_path, monkeypatch):
    said, types = [], set()
    monkeypatch.setattr(start, "_on_cpu", lambda: True)
    monkeypatch.setattr(start, "cpu_has_bfloat16", lambda: False)
    monkeypatch.setattr(torch.nn.Conv2d, "_conv_forward", (lambda forward: lambda self, *a: _noted(types, forward(self, *a)))(
        torch.nn.Conv2d._conv_forward))
    run(configs.load(write_config(tmp_path, [STAGES[0]], precision="bfloat16", validation=NO_VALIDATION)), say=said.append)
    assert any("only emulates bfloat16" in text and "training in float32" in text for text in said)
    assert types == {torch.float32}


def _noted(types: set, output: torch.Tensor) -> torch.Tensor:
    types.add(output.dtype)
    return output
