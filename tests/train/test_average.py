"""The mean of several checkpoints of one model."""
import dataclasses
import os
import subprocess
import sys

import pytest
import torch
from conftest import tiny_config

from train.average import average, main
from vdd_model.checkpoint import store as checkpoint
from vdd_model.errors import UserError
from vdd_model.networks.model import DeblurModel


def _saved(path, seed: int, config=None):
    torch.manual_seed(seed)
    model = DeblurModel(config or tiny_config())
    checkpoint.save(model, path, training={"note": f"seed {seed}"})
    return model.state_dict()


@pytest.mark.parametrize("name", ["train", "train.ablate", "train.average", "train.data", "train.evaluate"])
def test_an_interruption_while_a_command_is_imported_is_one_line(tmp_path, name):
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    found = subprocess.run([sys.executable, "-m", name, "configs/small.yaml"], env={**os.environ, "PYTHONPATH": str(tmp_path)},
                           capture_output=True, text=True)
    assert (found.returncode, found.stderr.partition(";")[0].strip()) == (130, "interrupted")


def test_every_tensor_is_the_weighted_mean_and_the_file_loads(tmp_path, capsys):
    a, b = (_saved(tmp_path / f"{name}.safetensors", seed) for name, seed in (("a", 1), ("b", 2)))
    names = [str(tmp_path / f"{name}.safetensors") for name in "ab"]
    assert main([*names, "-o", str(tmp_path / "mean.safetensors"), "--weights", "1", "3"]) == 0
    assert "the mean of a.safetensors, b.safetensors" in capsys.readouterr().out
    for name, tensor in checkpoint.load(tmp_path / "mean.safetensors").state_dict().items():
        torch.testing.assert_close(tensor, a[name] / 4 + b[name] * 3 / 4)
    record = checkpoint.read_training(tmp_path / "mean.safetensors")
    assert record == {"note": "seed 1", "average_of": ["a.safetensors", "b.safetensors"], "average_weights": [1.0, 3.0]}


def test_halves_are_summed_in_float32(tmp_path):
    """Three float16 files of equal weights give these weights back, without the rounding of each sum."""
    state = _saved(tmp_path / "a.safetensors", 1)
    config = tiny_config()
    checkpoint.save_state(state, config, tmp_path / "half.safetensors", dtype=torch.float16)
    _, mean = average([tmp_path / "half.safetensors"] * 3)
    for name, tensor in mean.items():
        if tensor.is_floating_point():
            assert tensor.dtype == torch.float16
            torch.testing.assert_close(tensor, state[name].half(), rtol=0, atol=0)


def test_only_what_is_named_is_averaged_and_another_scale_does_not_matter_to_the_fidelity_branch(tmp_path, capsys):
    config, (one, other) = tiny_config(), (tmp_path / f"{name}.safetensors" for name in ("one", "other"))
    rescaled = dataclasses.replace(config, vae=dataclasses.replace(config.vae, latent_scale=0.5))
    a, b = _saved(one, 1), _saved(other, 2, rescaled)
    assert main([str(one), str(other), "-o", str(tmp_path / "mean.safetensors"), "--only", "vae.fidelity."]) == 0
    mean = checkpoint.load(tmp_path / "mean.safetensors").state_dict()
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, (a[name] + b[name]) / 2 if name.startswith("vae.fidelity.") else a[name])
    assert checkpoint.read_training(tmp_path / "mean.safetensors")["average_only"] == ["vae.fidelity."]
    for only in (["vae.fidelity.", "adapter."], ["encoder2."]):                # these go by the scale
        with pytest.raises(UserError, match="latent_scale"):
            average([one, other], only=only)
    with pytest.raises(UserError, match="no tensor's name in .* starts with 'fidelity'"):
        average([one, other], only=["fidelity"])


def test_what_is_no_average_is_refused(tmp_path, capsys):
    one, other, wide = (tmp_path / f"{name}.safetensors" for name in ("one", "other", "wide"))
    config = tiny_config()
    _saved(one, 1)
    _saved(other, 1, dataclasses.replace(config, vae=dataclasses.replace(config.vae, latent_scale=0.5)))
    _saved(wide, 1, dataclasses.replace(config, null_tokens=3))
    for paths, weights, words in (((one, other), None, "latent_scale"), ((one, wide), None, "null_tokens is 2 against 3"),
                                  ((one,), None, "two or more"), ((one, one), (1.0, 0.0), "a positive weight for each"),
                                  ((one, one), (1.0, float("inf")), "a positive weight for each")):
        with pytest.raises(UserError, match=words):
            average(paths, weights)
    out = tmp_path / "out.safetensors"
    assert main([str(one), str(tmp_path / "none.safetensors"), "-o", str(out)]) == 2
    assert "there is no checkpoint" in capsys.readouterr().err and not out.exists()
