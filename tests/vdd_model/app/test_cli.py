"""The command line: help without heavy imports, exit codes, several inputs, shared work."""
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from media_tools import IdentityDeblurrer, pictures, save_clip, vdd

from vdd_model.app import cli
from vdd_model.app.cli import main, parser
from vdd_model.inference import pipeline
from vdd_model.media import sinks
from vdd_model.media.video import probe

ROOT = Path(__file__).resolve().parents[3]
TOOLS = ROOT / "tests" / "media_tools.py"


@pytest.mark.parametrize("command", [[], ["deblur"], ["compare"], ["convert"], ["info"]])
def test_help_imports_nothing_heavy(command):
    code = ("import sys; from vdd_model.app.cli import main; code = main(sys.argv[1:]); "
            "heavy = {'torch', 'numpy', 'av', 'kornia', 'PIL', 'open_clip'} & set(sys.modules); "
            "sys.exit(code or (str(heavy) if heavy else 0))")
    result = subprocess.run([sys.executable, "-c", code, *command, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "usage: vdd" in result.stdout


def test_usage_errors(capsys):
    for command, words in (("", ""), ("deblur a.mp4", ""), ("deblur a.mp4 -o b.mp4 --fps fast", "not a number or a fraction"),
                           ("deblur a.mp4 -o b.mp4 --fps 5000", "cannot be used")):
        assert main(command.split()) == 2 and words in capsys.readouterr().err
    assert main(["--help"]) == 0 and "exit codes" in capsys.readouterr().out


@pytest.mark.parametrize("text, rate", [pair.split() for pair in (
    "24 24", "23.976 24000/1001", "23.98 24000/1001", "29.97 30000/1001", "59.94 60000/1001", "12.5 25/2", "2997/100 2997/100", "5 5",
    "25.0 25", "0.004 1/250", "33.333333333 100/3")])
def test_rates_are_what_people_mean(text, rate):
    assert parser().parse_args(["deblur", "a", "-o", "b", "--fps", text]).fps == Fraction(rate)


def test_wrong_settings_are_one_sentence_before_the_model_is_loaded(tmp_path, capsys, monkeypatch):
    source = str(save_clip(tmp_path / "a.mp4", 5))
    monkeypatch.setattr("vdd_model.inference.pipeline.Deblurrer", None)
    for setting in ("--steps 0", "--steps 1001", "--fidelity 2", "--quality 99", "--window 0", "--codec prores", "--ensemble 9",
                    "--guidance nan", "--device cuda:99", "--device meta", "--checkpoint nowhere.safetensors",
                    "--guidance-interval 0.9 0.1"):
        assert main(["deblur", source, "-o", str(tmp_path / "o.mp4"), *setting.split()]) == 1, setting
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "Traceback" not in error and "something went wrong" not in error, error
        assert "steps must be between 1 and 1000, not 1001" in error or setting != "--steps 1001"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4"]


@pytest.mark.parametrize("device, expected", [(None, "cuda:3"), ("cuda", "cuda:3"), ("cuda:1", "cuda:1"), ("cpu", "cpu")])
def test_each_process_takes_its_own_gpu(monkeypatch, device, expected):
    """As torchrun starts them; more processes than GPUs share those there are."""
    monkeypatch.setenv("LOCAL_RANK", "11")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch, "empty", lambda *_, **keys: keys["device"])
    monkeypatch.setattr(pipeline, "default_dtype", lambda device: str(device))
    arguments = parser().parse_args(["deblur", "a", "-o", "b", *(["--device", device] if device else [])])
    assert cli._device_and_dtype(arguments) == (torch.device(expected), expected)


def test_resume_refuses_another_dtype(tmp_path, tiny_checkpoint, capsys):
    """Whose frames would not be the same bit for bit."""
    source = save_clip(tmp_path / "a.mp4", 9)
    command = ["deblur", str(source), "-o", str(tmp_path / "o.mp4"), "--checkpoint", str(tiny_checkpoint), "--device", "cpu",
               "--window", "4", "--overlap", "0", "--resume"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sinks.VideoSink, "finish", Mock(side_effect=KeyboardInterrupt))
        assert main([*command, "--dtype", "float32"]) == 130
    assert main([*command, "--dtype", "bfloat16"]) == 1
    assert "precision was float32 on cpu, is bfloat16 on cpu" in capsys.readouterr().err
    assert main([*command, "--dtype", "float32"]) == 0


def test_the_folder_one_stands_in_and_one_with_a_dot_in_its_name(tmp_path, monkeypatch, capsys):
    pictures(tmp_path / "in", 0, name="a.png")
    for folder, where in (("one", "."), ("two/deep", "..")):
        (tmp_path / folder).mkdir(parents=True)
        monkeypatch.chdir(tmp_path / folder)
        vdd(capsys, tmp_path / "in", "-o", where, "--force", "--preview")
    names = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.png"))
    assert names == ["in/a.png", "one.preview.png", "one/a.png", "two.preview.png", "two/a.png"]
    assert "choose a folder inside it" in vdd(capsys, tmp_path / "in", "-o", "/", "--force", code=1)
    monkeypatch.chdir(tmp_path)
    save_clip(tmp_path / "a.mp4", 5)
    assert "for a folder of that name, write results_v1.2/" in vdd(capsys, "a.mp4", "-o", "results_v1.2", code=1)
    vdd(capsys, "a.mp4", "-o", "results_v1.2/")
    assert (tmp_path / "results_v1.2" / "a.mp4").is_file()


def test_debug_shows_the_traceback(tmp_path, capsys):
    assert main(["deblur", str(tmp_path / "none.mp4"), "-o", str(tmp_path / "o.mp4"), "--debug"], IdentityDeblurrer()) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_comparison_of_damaged_clips_is_partial_and_one_that_is_interrupted_cannot_be_resumed(tmp_path, capsys, monkeypatch):
    folder = pictures(tmp_path / "a", *range(4), name="{}.png")[0].parent
    command = ["compare", str(folder), str(folder), "-o", str(tmp_path / "report")]
    assert main(command) == 0
    (folder / "2.png").write_bytes(b"damaged")
    assert main(command) == 3 and "left out" in capsys.readouterr().out
    monkeypatch.setattr("vdd_model.measure.report.compare", Mock(side_effect=KeyboardInterrupt))
    assert main(command) == 130 and "resume" not in capsys.readouterr().err


def test_several_inputs_of_which_one_is_bad(tmp_path, capsys):
    clips, out = [save_clip(tmp_path / name, 5) for name in ("a.mp4", "b.mov")], tmp_path / "out"
    (tmp_path / "c.mp4").write_bytes(b"not a video" * 50)
    stills = pictures(tmp_path / "stills", 0, 1, 2)[0].parent
    command = ["deblur", *map(str, (*clips, tmp_path / "c.mp4", stills)), "-o", str(out)]
    assert main(command, IdentityDeblurrer()) == 1
    assert sorted(p.name for p in out.iterdir()) == ["a.mp4", "b.mov", "stills"] and len(list((out / "stills").iterdir())) == 3
    said = capsys.readouterr()
    assert said.out.count("frames/s") == 3 and "c.mp4 is not a video" in said.err and "1 of 4 clips failed" in said.err
    assert "--force" in vdd(capsys, clips[0], "-o", out, code=1)
    vdd(capsys, clips[0], "-o", out, "--force")


def test_resume_of_many_leaves_the_finished_ones(tmp_path, capsys):
    clips, out = [save_clip(tmp_path / f"{name}.mp4", 12) for name in "abc"], tmp_path / "out"
    command, given = ["deblur", str(tmp_path), "-o", str(out), "--window", "4", "--overlap", "0"], []

    def stop(*_):
        """In the middle of the second."""
        given.append(1)
        if len(given) == 3 + 3:
            raise KeyboardInterrupt
    assert main(command, IdentityDeblurrer(each=stop)) == 130
    first = (out / "a.mp4").stat().st_mtime_ns
    assert main([*command, "--resume"], IdentityDeblurrer()) == 0
    said = capsys.readouterr()
    assert "a.mp4 is there already" in said.err and "b.mp4: goes on after 8 finished frames" in said.err
    assert "12 frames, 4 of them in" in said.out
    assert sorted(p.name for p in out.iterdir()) == [clip.name for clip in clips] and (out / "a.mp4").stat().st_mtime_ns == first


def test_info(tmp_path, tiny_checkpoint, capsys):
    assert main(["info", str(tiny_checkpoint)]) == 0
    assert "tiny" in capsys.readouterr().out
    assert main(["info", str(save_clip(tmp_path / "a.mp4", 5, audio=True))]) == 0
    text = capsys.readouterr().out
    assert "5, 64 x 48" in text and "25 frames per second" in text and "aac" in text
    assert main(["info", str(tmp_path / "none.safetensors")]) == 1


def test_two_processes_share_the_inputs(tmp_path):
    """As `accelerate launch --num_processes 2` starts them: each clip is finished exactly once."""
    names = [save_clip(tmp_path / f"{i}.mp4", 3 + i).name for i in range(5)]
    command = [sys.executable, str(TOOLS), "deblur", str(tmp_path), "-o", str(tmp_path / "out"), "--quiet"]
    processes = [subprocess.Popen(command, env={**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
                                  stdout=subprocess.PIPE, text=True) for rank in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0] and all(" -> " in text for text in outputs)
    done = [line.split(" -> ")[0] for text in outputs for line in text.splitlines() if " -> " in line]
    assert sorted(Path(name).name for name in done) == names
    assert [probe(tmp_path / "out" / name).num_frames for name in names] == [3, 4, 5, 6, 7]
