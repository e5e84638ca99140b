"""The benchmarks run, on the smallest of everything; their figures are not looked at."""
import functools
import importlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from benchmarks import __main__ as bench
from benchmarks import against, autoencoder, common, memory, options, pipeline, quality, shortcuts, startup, unet, wing
from vdd_model.inference.pipeline import Deblurrer


@pytest.fixture(autouse=True)
def small_ceilings(monkeypatch):
    monkeypatch.setattr(bench, "last_tag", lambda: None)
    monkeypatch.setattr(common, "ceilings", lambda device="cpu", clock=None: {f"{kind} {dtype}": 100.0 for kind in ("matmul", "conv")
                                                                  for dtype in ("float32", "bfloat16")} | {"copy": 10.0})
    monkeypatch.setattr(common, "as_command_line", lambda: None)


@pytest.fixture(params=[("float32",), ("float32", "bfloat16")], ids=len)
def types(request, monkeypatch):
    """What the machine computes in: with bfloat16 or without."""
    monkeypatch.setattr(common, "computed_types", lambda device="cpu": request.param)
    return request.param


def test_timing_and_tables(tmp_path):
    timing = common.Timing((1.0, 3.0, 2.0))
    assert timing.median == 2.0 and timing.spread == 0.5
    layer = torch.nn.Linear(8, 4)
    assert common.count_flops(lambda: layer(torch.ones(2, 8))) == 2 * 2 * 8 * 4
    found = common.measure_together({"a": lambda: None, "b": lambda: None}, 3)
    assert [len(t.seconds) for t in found.values()] == [3, 3]
    path = common.write("x", [{"a": 1.0, "b": "c"}, {"a": 2.0, "d": 12.5}], folder=tmp_path, notes=["Said."])
    assert "| 1 | c |  |\n| 2 |  | 12.50 |" in path.read_text()
    assert json.loads(path.with_suffix(".json").read_text())["tables"]["x"][0] == {"a": 1.0, "b": "c"}


def test_file_to_file_by_stage(tiny_checkpoint, tmp_path):
    case = pipeline.Case(3, 32, 32, dtype="float32", runs=2, warmup=0)
    memory.make_clip(tmp_path / "clip.mp4", 3, 32, 32)
    result = pipeline.run_case(case, tmp_path / "clip.mp4", tmp_path, str(tiny_checkpoint), "cpu")
    assert len(result["seconds"]) == 2 and all(result["stages"][stage] > 0 for stage in pipeline.STAGES)
    row = pipeline.row(case, result)
    assert row["s"] > 0 and row["rest s"] < row["s"] and "decode s" in row
    assert pipeline.growth_row(case, result)["frames"] == 3 and pipeline.memory_row(case, result)["cut into"] == "whole frames"


def test_cases_are_measured_in_types_that_the_machine_has(types):
    stages = pipeline.plan(True, "cpu")["stages"]
    assert {case.steps for case in stages} == {1, 4, 10, 50}
    assert {case.dtype for case in stages} == set(types) and all(case.dtype == types[-1] for case in stages if case.steps > 1)


def test_quality_says_what_a_shortcut_costs(tiny_checkpoint, types):
    rows = quality.rows(str(tiny_checkpoint), [quality.pattern(2, 32)], (1, 4))
    by, fast = {(row["shortcut"], row.get("steps")): row for row in rows}, types[-1]
    assert by["none", 4]["PSNR dB"] > 0 and by[f"{fast}, float8 weights", 1]["against exact dB"] > 20
    assert (f"{fast}, features kept for 2 steps", 1) not in by and (f"{fast}, guidance 2", 4) in by
    assert (("bfloat16", 1) in by) == (fast == "bfloat16")


@torch.no_grad()
def test_parts_of_the_cpu_wing():
    rows = wing.unet_rows("float32", [*wing.PARTS, wing.PACKED], 64, (64, 32), 2, 1) + wing.decoding_rows("float32", (32, 32), 1, 1)
    assert [row["variant"] for row in rows] == ["plain", "all", "without Winograd's filtering", "without feed-forward by rows",
                                                "without packed weights", "all", "without strips"]
    assert all(row["processor s"] > 0 for row in rows) and rows[1]["x all"] == rows[5]["x all"] == 1


def test_start_up(tiny_checkpoint):
    found = startup.first_frame(str(tiny_checkpoint), "cpu", 2, 32, 32)
    assert found["first frames"] > 0 and not set(startup.TRAINING) & set(found["modules"])


def test_options_and_the_autoencoder(tiny_checkpoint, types):
    rows, notes = autoencoder.rows(str(tiny_checkpoint), 2, (32, 32), repeats=1)
    assert len(rows) == 4 * len(types) and len(notes) == len(types) and all(row["GFLOP"] > 0 for row in rows)
    weights = options.weight_rows(str(tiny_checkpoint), 2, (32, 32), "cpu", 1, compiled=False)
    assert {row["weights"].split(",")[0].split(" ")[0] for row in weights} == {*types, "float8", *(["float16"] if len(types) > 1 else [])}
    assert len(options.step_rows(str(tiny_checkpoint), 2, (32, 32), 3, "cpu", 1)) == 5
    assert len(options.window_rows(str(tiny_checkpoint), (32, 32), "cpu", 1)) == len(options.WINDOWS)


def test_shortcuts_leave_the_model_as_it_was(tiny_model):
    unet, deblur = tiny_model.unet, functools.partial(Deblurrer(tiny_model, device="cpu").deblur, torch.rand(2, 32, 32, 3), steps=4)
    before, stored = deblur(), shortcuts.weight_bytes(unet)
    with shortcuts.fp8_weights(unet):
        assert shortcuts.weight_bytes(unet) < 0.5 * stored
        small = deblur()
    with shortcuts.rounded_to_fp8(unet):
        torch.testing.assert_close(deblur(), small, rtol=0, atol=1e-4)
    for steps, alike in ((1, True), (2, False)):
        with shortcuts.cached_features(unet, steps):
            assert torch.equal(deblur(), before) == alike
    assert torch.equal(deblur(), before)


def test_the_summary_says_what_was_not_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    assert all(row["measured"] == common.NOT_MEASURED for row in bench.summary(tmp_path))
    common.write("pipeline", {"seconds by stage": [{"clip": "16 x 256 x 256", "steps": 1, "type": "bfloat16", "s": 2.5}]}, folder=tmp_path)
    assert {"yes"} == {row["met"] for row in bench.summary(tmp_path) if "met" in row}
    calls = [{"network": "UNet3D, packed", "size": f"16 x {width} x 256", "type": "float32", "x official": x}
             for width, x in ((256, 1.5), (448, 2.0))]
    common.write("unet", {"one call": calls}, folder=tmp_path)
    assert [row["measured"] for row in bench.summary(tmp_path) if "float32" in row["what"]] == ["1.5 x"]
    calls = [{"network": "UNet3D, packed", "size": "16 x 256 x 256", "type": "bfloat16", "x diffusers": 1.9, "of matmul": "50 %"}]
    common.write("unet", {"one call": calls}, folder=tmp_path)
    assert [(row["measured"], row["met"]) for row in bench.summary(tmp_path) if "bfloat16" in row["what"] and "met" in row] == [
        ("1.9 x", "no"), ("50 %", "yes")]


@pytest.mark.parametrize("name", list(bench.commands("cpu", False, "small", common.RESULTS)))
def test_every_benchmark_of_make_bench_is_there(name):
    assert importlib.import_module(f"benchmarks.{name}").main


def test_another_environment_that_cannot_be_made_is_tried_once(tmp_path, monkeypatch):
    monkeypatch.setattr(unet, "HERE", tmp_path)
    monkeypatch.setattr(unet.subprocess, "run", Mock(side_effect=OSError("no network")))
    unet.reference_python.cache_clear()
    try:
        assert unet.reference_python() is unet.reference_python() is None and unet.subprocess.run.call_count == 1
    finally:
        unet.reference_python.cache_clear()


@pytest.mark.parametrize("codes, more, code, said", [([1, 0], [], 1, "Failed: first."), ([None, None], [], 0, "first, second."),
                                                     ([], ["--minutes", "0"], 0, "Not done in time: first, second.")])
def test_make_bench_goes_on_after_a_failure_and_ends_in_time(tmp_path, monkeypatch, codes, more, code, said):
    """What is under way when the minutes are over is ended, the rest is not begun, and both are named."""
    monkeypatch.setattr(bench, "commands", lambda *_: {"first": [], "second": []})
    monkeypatch.setattr(bench, "run_within", run := Mock(side_effect=codes))
    assert bench.main(["--out", str(tmp_path), *more]) == code and said in (tmp_path / "summary.md").read_text()
    assert [call.args[0][2] for call in run.call_args_list] == ["benchmarks.first", "benchmarks.second"][:len(codes)]


def test_another_build_is_measured_beside_todays(tmp_path, tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(against, "SIZES", {"256": (48, 32)})
    found, = against.rows(against.HERE, ["256"], 3, ["float32"], 1, str(tiny_checkpoint))
    assert found["agree dB"] == float("inf") and found["time"] > 0 and 0.5 < found["memory"] < 2 and found["today MB"] > 50
    with against.checkout(str(against.HERE)) as build:
        assert build == against.HERE
    with pytest.raises(SystemExit, match="neither"), against.checkout(str(tmp_path / "nothing")):
        pass


def test_frames_are_compared_by_the_other_builds_weights(tmp_path, monkeypatch):
    shipped, used = tmp_path / against.BUILT_IN["small"].relative_to(against.HERE), []
    shipped.parent.mkdir(parents=True)
    shipped.touch()
    monkeypatch.setattr(against, "deblur", lambda build, *what: used.append((build, what[-1])) or (1.0, 1.0, 1.0))
    monkeypatch.setattr(against, "psnr", lambda other, today: len(used))
    found, = against.rows(tmp_path, ["256"], 1, ["float32"], 1, "small")
    assert used[:4] == [(tmp_path, "small"), (against.HERE, "small")] * 2 and used[4:] == [(against.HERE, str(shipped))]
    assert found["agree dB"] == 5


def test_the_build_to_compare_with(tmp_path, monkeypatch):
    """A repository's last tag; without one its first version; in a history that holds neither, none."""
    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", "-C", tmp_path, *who, *words], check=True, capture_output=True, text=True)
    monkeypatch.setattr(against, "HERE", tmp_path)
    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "-m", "one")
    assert against.last_tag() is None
    first = git("rev-parse", "HEAD").stdout.strip()
    monkeypatch.setattr(against, "FIRST_VERSION", first[:7])
    assert against.last_tag() == first
    git("tag", "v1")
    assert against.last_tag() == "v1"


def test_a_benchmark_whose_time_is_over_leaves_nothing_behind(tmp_path, request):
    """What it started ends too, and it can tidy up, also where a shell has started all in the background, which ignores Ctrl-C."""
    request.addfinalizer(functools.partial(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, signal.SIG_IGN)))
    code = (f"import pathlib, subprocess, sys, time; here = pathlib.Path({str(tmp_path)!r})\n"
            "stays = 'import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)'\n"
            "inner = subprocess.Popen([sys.executable, '-c', stays])\n"
            "try:\n    (here / 'pid').write_text(str(inner.pid))\n    time.sleep(60)\n"
            "finally: (here / 'tidied').touch()")
    for seconds in (2.0, 10.0, 50.0):                          # a busy machine takes its time until it has begun
        if not (tmp_path / "pid").exists():
            assert bench.run_within([sys.executable, "-c", code], seconds) is None
    assert (tmp_path / "tidied").exists()
    status = Path("/proc") / (tmp_path / "pid").read_text() / "status"
    until = time.monotonic() + 20
    while status.exists() and "State:\tZ" not in status.read_text():
        assert time.monotonic() < until
    assert bench.run_within([sys.executable, "-c", "raise SystemExit(3)"], 60.0) == 3
