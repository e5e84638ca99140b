"""The pretrained prior on the command line: which file is taken, what is said where there is none, `vdd convert maxim`."""
import pytest
from media_tools import save_clip

from vdd_model.app import cli
from vdd_model.app.cli import main
from vdd_model.checkpoint.maxim import FILE_NAME
from vdd_model.errors import UserError
from vdd_model.inference import prior as module
from vdd_model.options import DeblurOptions


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "__file__", str(tmp_path / "package" / "inference" / "prior.py"))


@pytest.mark.parametrize("given", ["maxim", "nowhere.safetensors"])
def test_a_prior_asked_for_in_vain_is_one_sentence(tmp_path, tiny_checkpoint, capsys, given):
    source = save_clip(tmp_path / "a.mp4", 1)
    command = ["deblur", str(source), "-o", str(tmp_path / "o.mp4"), "--checkpoint", str(tiny_checkpoint), "--prior", given]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "make prior" in error and "vdd convert maxim" in error and (given in error or given == "maxim")
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_another_prior_is_another_result(tmp_path, tiny_checkpoint):
    """What a run is gone on with: the weights, the prior's among them, where it may be asked."""
    def mark(choice: str, prior=None) -> str:
        return cli._identity(str(tiny_checkpoint), DeblurOptions(prior=choice), prior)
    without = mark("auto")
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"12345")
    assert mark("maxim", str(other)) == f"{without} other.safetensors 5 {other.stat().st_mtime_ns}" and mark("none") == without
    beside = tiny_checkpoint.with_name(FILE_NAME)
    beside.write_bytes(b"123")
    try:
        assert FILE_NAME in mark("auto") and mark("none") == without
    finally:
        beside.unlink()
    pytest.raises(UserError, mark, "maxim").match("make prior")


def test_convert_maxim(tmp_path, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr("vdd_model.checkpoint.maxim.convert_maxim",
                        lambda *given, **more: asked.append((given, str(more["dtype"]))) or "done")
    assert main(["convert", "maxim", "a.tgz", "-o", str(tmp_path / "p.safetensors")]) == 0
    assert asked == [(("a.tgz", str(tmp_path / "p.safetensors")), "torch.float16")] and capsys.readouterr().out == "done\n"
    (tmp_path / "p.safetensors").touch()
    assert main(["convert", "maxim", "a.tgz", "-o", str(tmp_path / "p.safetensors")]) == 1
    assert "exists already; use --force" in capsys.readouterr().err
    assert main(["convert", "maxim", "a.tgz", "-o", str(tmp_path / "p.safetensors"), "--force", "--dtype", "float32"]) == 0
    assert asked[1][1] == "torch.float32"
    assert main(["convert", "a.pth", "b.ckpt"]) == 2
    assert "-o OUTPUT is missing" in capsys.readouterr().err
