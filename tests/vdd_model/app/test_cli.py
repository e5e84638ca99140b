"""The command line: help without heavy imports, exit codes, several inputs, shared work."""
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from media_tools import IdentityDeblurrer, pictures, save_clip, vdd

from vdd_model.app.cli import main, parser
from vdd_model.media.video import probe

ROOT = Path(__file__).resolve().parents[3]
TOOLS = ROOT / "tests" / "media_tools.py"


def clip(path: Path, frames: int = 5) -> Path:
    return save_clip(path, frames)


@pytest.mark.parametrize("command", [[], ["deblur"], ["compare"], ["convert"], ["info"]])
def test_help_imports_nothing_heavy(command):
    code = ("import sys; from vdd_model.app.cli import main; code = main(sys.argv[1:]); "
            "heavy = {'torch', 'numpy', 'av', 'kornia', 'PIL', 'open_clip'} & set(sys.modules); "
            "sys.exit(code or (str(heavy) if heavy else 0))")
    result = subprocess.run([sys.executable, "-c", code, *command, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "usage: vdd" in result.stdout


def test_usage_errors(capsys):
    assert main([]) == 2
    assert main(["deblur", "a.mp4"]) == 2
    assert main(["deblur", "a.mp4", "-o", "b.mp4", "--fps", "fast"]) == 2
    assert "not a number or a fraction" in capsys.readouterr().err
    assert main(["deblur", "a.mp4", "-o", "b.mp4", "--fps", "5000"]) == 2 and "cannot be used" in capsys.readouterr().err
    assert main(["--help"]) == 0
    assert "exit codes" in capsys.readouterr().out


@pytest.mark.parametrize("text, rate", [("24", Fraction(24)), ("23.976", Fraction(24000, 1001)), ("23.98", Fraction(24000, 1001)),
                                        ("29.97", Fraction(30000, 1001)), ("59.94", Fraction(60000, 1001)), ("12.5", Fraction(25, 2)),
                                        ("2997/100", Fraction(2997, 100)), ("5", Fraction(5)), ("25.0", Fraction(25)),
                                        ("0.004", Fraction(1, 250)), ("33.333333333", Fraction(100, 3))])
def test_rates_are_what_people_mean(text, rate):
    assert parser().parse_args(["deblur", "a", "-o", "b", "--fps", text]).fps == rate


def test_wrong_settings_are_one_sentence_before_the_model_is_loaded(tmp_path, capsys, monkeypatch):
    source = str(clip(tmp_path / "a.mp4"))
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
    from vdd_model.app import cli
    from vdd_model.inference import pipeline
    monkeypatch.setenv("LOCAL_RANK", "11")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch, "empty", lambda *_, **keys: keys["device"])
    monkeypatch.setattr(pipeline, "default_dtype", lambda device: str(device))
    arguments = cli.parser().parse_args(["deblur", "a", "-o", "b", *(["--device", device] if device else [])])
    assert cli._device_and_dtype(arguments) == (torch.device(expected), expected)


def test_resume_refuses_another_dtype(tmp_path, tiny_checkpoint, capsys):
    """Whose frames would not be the same bit for bit."""
    source = clip(tmp_path / "a.mp4", 9)
    command = ["deblur", str(source), "-o", str(tmp_path / "o.mp4"), "--checkpoint", str(tiny_checkpoint), "--device", "cpu",
               "--window", "4", "--overlap", "0", "--resume"]
    from vdd_model.media import sinks

    def end(self, *args, **keys):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sinks.VideoSink, "finish", end)
        assert main([*command, "--dtype", "float32"]) == 130
    assert main([*command, "--dtype", "bfloat16"]) == 1
    assert "precision was float32 on cpu, is bfloat16 on cpu" in capsys.readouterr().err
    assert main([*command, "--dtype", "float32"]) == 0


def test_the_folder_one_stands_in(tmp_path, monkeypatch, capsys):
    pictures(tmp_path / "in", 0, name="a.png")
    for folder, where in (("one", "."), ("two/deep", "..")):
        (tmp_path / folder).mkdir(parents=True)
        monkeypatch.chdir(tmp_path / folder)
        vdd(capsys, tmp_path / "in", "-o", where, "--force", "--preview")
    names = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.png"))
    assert names == ["in/a.png", "one.preview.png", "one/a.png", "two.preview.png", "two/a.png"]
    assert "choose a folder inside it" in vdd(capsys, tmp_path / "in", "-o", "/", "--force", code=1)


def test_a_folder_with_a_dot_in_its_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    clip(tmp_path / "a.mp4")
    assert "for a folder of that name, write results_v1.2/" in vdd(capsys, "a.mp4", "-o", "results_v1.2", code=1)
    vdd(capsys, "a.mp4", "-o", "results_v1.2/")
    assert (tmp_path / "results_v1.2" / "a.mp4").is_file()


def test_debug_shows_the_traceback(tmp_path, capsys):
    assert main(["deblur", str(tmp_path / "none.mp4"), "-o", str(tmp_path / "o.mp4"), "--debug"], IdentityDeblurrer()) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_comparison_of_damaged_clips_is_partial(tmp_path, capsys):
    folder = pictures(tmp_path / "a", *range(4), name="{}.png")[0].parent
    command = ["compare", str(folder), str(folder), "-o", str(tmp_path / "report")]
    assert main(command) == 0
    (folder / "2.png").write_bytes(b"damaged")
    assert main(command) == 3 and "left out" in capsys.readouterr().out


def test_only_what_can_be_resumed_says_so(capsys, monkeypatch):
    def stop(*args, **options):
        raise KeyboardInterrupt
    monkeypatch.setattr("vdd_model.measure.report.compare", stop)
    assert main(["compare", "a", "b"]) == 130 and "resume" not in capsys.readouterr().err


def test_several_inputs(tmp_path, capsys):
    clip(tmp_path / "a.mp4")
    clip(tmp_path / "b.mov")
    frames = pictures(tmp_path / "stills", 0, 1, 2)[0].parent
    out = tmp_path / "out"
    assert main(["deblur", str(tmp_path / "a.mp4"), str(tmp_path / "b.mov"), str(frames), "-o", str(out)], IdentityDeblurrer()) == 0
    assert sorted(p.name for p in out.iterdir()) == ["a.mp4", "b.mov", "stills"]
    assert len(list((out / "stills").iterdir())) == 3
    assert capsys.readouterr().out.count("frames/s") == 3
    assert "--force" in vdd(capsys, tmp_path / "a.mp4", "-o", out, code=1)
    vdd(capsys, tmp_path / "a.mp4", "-o", out, "--force")


def test_one_bad_clip_does_not_stop_the_others(tmp_path, capsys):
    clip(tmp_path / "a.mp4")
    (tmp_path / "b.mp4").write_bytes(b"not a video" * 50)
    clip(tmp_path / "c.mp4")
    error = vdd(capsys, tmp_path, "-o", tmp_path / "out", code=1)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.mp4", "c.mp4"]
    assert "b.mp4 is not a video" in error and "1 of 3 clips failed" in error


def test_resume_of_many_leaves_the_finished_ones(tmp_path, capsys):
    for name in "abc":
        clip(tmp_path / f"{name}.mp4", 12)
    command = ["deblur", str(tmp_path), "-o", str(tmp_path / "out"), "--window", "4", "--overlap", "0"]

    class Second(IdentityDeblurrer):
        clips = 0

        def stream(self, *args, **keys):
            self.clips += 1
            self.stop_after = 8 if self.clips == 2 else None
            yield from super().stream(*args, **keys)

    assert main(command, Second()) == 130
    first = (tmp_path / "out" / "a.mp4").stat().st_mtime_ns
    assert main([*command, "--resume"], IdentityDeblurrer()) == 0
    said = capsys.readouterr()
    assert "a.mp4 is there already" in said.err and "b.mp4: goes on after 8 finished frames" in said.err
    assert "12 frames, 4 of them in" in said.out
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.mp4", "b.mp4", "c.mp4"]
    assert (tmp_path / "out" / "a.mp4").stat().st_mtime_ns == first


def test_info(tmp_path, tiny_checkpoint, capsys):
    assert main(["info", str(tiny_checkpoint)]) == 0
    assert "tiny" in capsys.readouterr().out
    assert main(["info", str(save_clip(tmp_path / "a.mp4", 5, audio=True))]) == 0
    text = capsys.readouterr().out
    assert "5, 64 x 48" in text and "25 frames per second" in text and "aac" in text
    assert main(["info", str(tmp_path / "none.safetensors")]) == 1


def test_two_processes_share_the_inputs(tmp_path):
    """As `accelerate launch --num_processes 2` starts them: each clip is finished exactly once."""
    for i in range(5):
        clip(tmp_path / f"{i}.mp4", 3 + i)
    command = [sys.executable, str(TOOLS), "deblur", str(tmp_path), "-o", str(tmp_path / "out"), "--quiet"]
    processes = [subprocess.Popen(command, env={**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
                                  stdout=subprocess.PIPE, text=True) for rank in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    done = [line.split(" -> ")[0] for text in outputs for line in text.splitlines() if " -> " in line]
    assert sorted(Path(name).name for name in done) == [f"{i}.mp4" for i in range(5)]
    assert all(" -> " in text for text in outputs)
    assert [probe(tmp_path / "out" / f"{i}.mp4").num_frames for i in range(5)] == [3 + i for i in range(5)]
