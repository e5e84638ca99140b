"""`make gpu` on a CPU: what can run does, and the rest says that it was not measured."""
import json

import pytest
import torch

from benchmarks import common, gpu


def test_on_a_cpu(tmp_path, tiny_checkpoint, tiny_model, monkeypatch):
    monkeypatch.setattr(common, "computed_types", lambda device="cpu": ("float32",))
    monkeypatch.setattr(common, "random_model", lambda name: tiny_model)
    assert gpu.main(["--device", "cpu", "--checkpoint", str(tiny_checkpoint), "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "gpu.json").read_text())["tables"]
    assert {row["met"] for part in ("networks against float32 on the CPU", "pipeline") for row in found[part]} == {"yes"}
    assert [row["stage"] for row in found["a training step"]] == list(gpu.STAGES)
    assert found["tft2v"][0]["s"] == common.NOT_MEASURED and all(row["frames/s"] > 0 for row in found["small"][:2])
    assert found["small"][2]["frames/s"] == common.NOT_MEASURED and found["small"][2]["why"]
    assert "| tft2v, 16 x 1280 x 768 | bfloat16 | not measured |" in (tmp_path / "gpu.md").read_text()


def test_a_wrong_network_is_found(tmp_path, tiny_checkpoint, monkeypatch):
    """A device that computes something else fails the run, and the other parts are still made."""
    real = gpu.Deblurrer.deblur
    monkeypatch.setattr(common, "computed_types", lambda device="cpu": ("float32",))
    monkeypatch.setattr(gpu.Deblurrer, "deblur", lambda self, frames, *a, **k: real(self, frames, *a, **k) + 0.02 * torch.rand(()).item())
    monkeypatch.setattr(gpu, "training", lambda device: 1 / 0)
    assert gpu.main(["--device", "cpu", "--checkpoint", str(tiny_checkpoint), "--out", str(tmp_path)]) == 1
    found = json.loads((tmp_path / "gpu.json").read_text())["tables"]
    assert "no" in {row["met"] for row in found["pipeline"]} and "ZeroDivisionError" in found["a training step"][0]["why"]


def test_what_no_longer_fits_is_not_measured(tmp_path, tiny_checkpoint):
    assert gpu.main(["--device", "cpu", "--checkpoint", str(tiny_checkpoint), "--minutes", "-1", "--out", str(tmp_path)]) == 0
    assert all(rows[0]["found"] == common.NOT_MEASURED for rows in json.loads((tmp_path / "gpu.json").read_text())["tables"].values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys):
    assert gpu.main([]) == 1 and "--device cpu" in capsys.readouterr().err
