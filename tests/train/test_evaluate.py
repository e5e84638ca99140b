"""The evaluation: its numbers, its files, its resume, its sentences."""
from __future__ import annotations

import csv
import json
import re
import shutil

import pytest
import torch

from train import evaluate
from vdd_model.inference.pipeline import DeblurOptions, Deblurrer
from vdd_model.measure import metrics, report
from vdd_model.media.video import read_clip


@pytest.fixture(scope="module")
def gopro(tmp_path_factory):
    """Two tiny sequences in GoPro's layout; the second has an odd size and more frames."""
    root = tmp_path_factory.mktemp("gopro")
    g = torch.Generator().manual_seed(0)
    for name, frames, height, width in (("SEQ_A", 3, 24, 32), ("SEQ_B", 5, 27, 33)):
        base = torch.nn.functional.interpolate(torch.rand(1, 3, 6, 8, generator=g), size=(height, width), mode="bilinear")[0].movedim(0, -1)
        for folder, gain in (("blur", 0.9), ("blur_gamma", 0.8), ("sharp", 1.0)):
            where = root / "test" / name / folder
            where.mkdir(parents=True)
            for i in range(frames):
                report.to_image(base.roll(i, 1) * gain).save(where / f"{i + 1:06d}.png")
    return root


def quick(checkpoint, root, out, *more):
    return evaluate.main([str(checkpoint), str(root), "--out", str(out), "--steps", "1", "2", "--window", "4", "--overlap", "1",
                          "--no-lpips", "--device", "cpu", *more])


@pytest.fixture(scope="module")
def evaluated(gopro, tiny_checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluation")
    assert quick(tiny_checkpoint, gopro, out) == 0
    return out


def test_numbers_are_means_over_all_frames(gopro, evaluated, tiny_checkpoint):
    data = json.loads((evaluated / "results.json").read_text())
    assert list(data["totals"]) == ["blurred input", "autoencoder's round trip", "1 step", "2 steps", "truth"]
    deblurrer = Deblurrer(tiny_checkpoint, device="cpu")
    values = {"blurred input": [], "1 step": []}
    for name in ("SEQ_A", "SEQ_B"):
        blurred, sharp = (read_clip(gopro / "test" / name / f) for f in ("blur", "sharp"))
        values["blurred input"] += metrics.psnr(blurred, sharp).tolist()
        values["1 step"] += metrics.psnr(deblurrer.deblur(blurred, DeblurOptions(window=4, overlap=1)), sharp).tolist()
    for setting, found in values.items():
        # Two readers' float32 frames differ in the last place, which a rounding to 8 bits can make visible in the model's output.
        assert len(found) == 8 and data["totals"][setting]["psnr"] == pytest.approx(sum(found) / 8, abs=1e-6 if setting[0] == "b" else 1e-2)
    assert data["totals"]["truth"]["psnr"] == metrics.MAX_PSNR and data["totals"]["truth"]["color_shift"] is None
    assert data["totals"]["blurred input"]["color_shift"] == 0


def test_files(evaluated):
    rows = list(csv.DictReader((evaluated / "results.csv").open()))
    assert len(rows) == 5 * 3 and {r["sequence"] for r in rows} == {"test/SEQ_A", "test/SEQ_B", "all"}
    text = (evaluated / "results.md").read_text()
    for words in ("published gopro numbers are over 1111", "| SRN", "30.29", "## test/SEQ_B", "## Protocol", "SSIM (MATLAB, 3-D)"):
        assert words in text
    assert {p.name for p in evaluated.glob("*.png")} == {"panel.png", "error_map.png", "steps.png"}


def test_the_panel_shows_the_fewest_and_the_most_steps(tmp_path, monkeypatch):
    names = ["blurred input", "autoencoder's round trip", "1 step", "4 steps", "50 steps", "1 step, mean of 2 orientations", "truth"]
    shown = []
    panel = report.panel
    monkeypatch.setattr(report, "panel", lambda pictures, labels, box: shown.extend(labels) or panel(pictures, labels, box))
    evaluate.write_figures(evaluate.Scored(pictures={name: torch.rand(32, 32, 3) for name in names}), tmp_path)
    assert shown == ["blurred input", "1 step", "50 steps", "truth"]


def test_an_interrupted_run_goes_on(gopro, evaluated, tiny_checkpoint, monkeypatch, capsys):
    part = next(evaluated.glob("parts/test_SEQ_B--1_step.json"))
    part.unlink()
    scored = []
    original = evaluate.score
    monkeypatch.setattr(evaluate, "score", lambda output, pair, **k: scored.append(pair.name) or original(output, pair, **k))
    before = json.loads((evaluated / "results.json").read_text())
    assert quick(tiny_checkpoint, gopro, evaluated) == 0
    assert scored == ["test/SEQ_B"]
    assert json.loads((evaluated / "results.json").read_text())["totals"] == before["totals"]


@pytest.mark.parametrize("change", ["nothing", "dtype", "data", "options", "lpips", "code"])
def test_only_the_same_run_takes_finished_parts(gopro, tiny_checkpoint, tmp_path, monkeypatch, change):
    scored, original = [], evaluate.score
    monkeypatch.setattr(evaluate, "score", lambda output, pair, **k: scored.append(pair.name) or original(output, pair, **k))
    monkeypatch.setattr(evaluate.report, "lpips_note", lambda: "not here")
    arguments = ["--out", str(tmp_path / "out"), "--steps", "1", "--device", "cpu", "--dtype", "float32", "--sequences", "SEQ_A",
                 "--frames", "2", "--no-warp", *([] if change == "lpips" else ["--no-lpips"])]
    assert evaluate.main([str(tiny_checkpoint), str(gopro), *arguments]) == 0
    assert len(scored) == 4
    scored.clear()
    root = gopro
    if change == "dtype":
        arguments += ["--dtype", "bfloat16"]
    elif change == "data":
        root = tmp_path / "copy"
        shutil.copytree(gopro, root)
    elif change == "options":
        arguments += ["--tile", "16"]
    elif change == "lpips":
        monkeypatch.setattr(evaluate.report, "lpips_note", lambda: "")
    elif change == "code":
        monkeypatch.setattr(evaluate, "code_version", lambda: "newer")
    assert evaluate.main([str(tiny_checkpoint), str(root), *arguments]) == 0
    assert len(scored) == (0 if change == "nothing" else 4)


def test_the_fingerprint_names_the_device_and_the_sources(tiny_model, tmp_path, monkeypatch):
    deblurrer = Deblurrer(tiny_model, device="cpu")
    texts = []
    for device in ("cpu", "cuda:1"):
        monkeypatch.setattr(deblurrer, "device", torch.device(device))
        monkeypatch.setattr(evaluate.time, "time_ns", lambda: 0)
        texts.append(evaluate.fingerprint_of(deblurrer, deblurrer, DeblurOptions(), tmp_path, False))
    assert texts[0] != texts[1]
    source = tmp_path / "vdd_model" / "__init__.py"
    source.parent.mkdir()
    monkeypatch.setattr(evaluate.vdd_model, "__file__", str(source))
    versions = []
    for text in ("a = 1", "a = 2"):
        source.write_text(text)
        evaluate.code_version.cache_clear()
        versions.append(evaluate.code_version())
    evaluate.code_version.cache_clear()
    assert versions[0] != versions[1]


def test_crops_and_input_folder(gopro, tiny_checkpoint, tmp_path):
    more = ["--crop", "16", "--blur", "blur_gamma", "--frames", "2", "--sequences", "SEQ_B", "--no-warp"]
    assert quick(tiny_checkpoint, gopro, tmp_path, *more) == 0
    data = json.loads((tmp_path / "results.json").read_text())
    assert "centred 16 x 16 crops" in data["frames"] and list(data["sequences"]["1 step"]) == ["test/SEQ_B"]
    blurred, sharp = (read_clip(gopro / "test" / "SEQ_B" / f)[:2, 5:21, 8:24] for f in ("blur_gamma", "sharp"))
    assert data["totals"]["blurred input"]["psnr"] == pytest.approx(float(metrics.psnr(blurred, sharp).mean()), abs=1e-6)


def test_the_round_trip_is_the_plain_autoencoder(tiny_model):
    frames = torch.rand(3, 16, 24, 3)
    found = torch.stack(list(evaluate.round_trip(Deblurrer(tiny_model, device="cpu"), frames)))
    mean, _ = tiny_model.vae.encode(frames.movedim(-1, 1) * 2 - 1)
    assert torch.allclose(found, (tiny_model.vae.decode(mean) * 0.5 + 0.5).clamp(0, 1).movedim(1, -1), atol=1e-5)


@pytest.mark.parametrize("more, words", [
    (["--sequences", "NONE"], "no sequence .* of these names .*SEQ_A"), (["--crop", "64"], "smaller than the crop"),
    (["--layout", "imax"], "no layout is called 'imax'"), (["--color", "green"], "color must be"),
])
def test_one_sentence_for_the_user(gopro, tiny_checkpoint, tmp_path, capsys, more, words):
    assert quick(tiny_checkpoint, gopro, tmp_path, *more) == 1
    error = capsys.readouterr().err
    assert re.search(words, error) and error.count("\n") == 1


def test_sizes_that_differ_are_one_sentence_and_a_mistake_of_ours_is_not(gopro, tiny_checkpoint, tmp_path, capsys):
    root = tmp_path / "gopro"
    shutil.copytree(gopro / "test" / "SEQ_A", root / "test" / "SEQ_A")
    for path in (root / "test" / "SEQ_A" / "blur").iterdir():
        report.to_image(torch.rand(20, 32, 3)).save(path)
    assert quick(tiny_checkpoint, root, tmp_path) == 1
    assert "SEQ_A: its blurred and sharp frames differ in size (32 x 20 and 32 x 24 pixels)" in capsys.readouterr().err
    with pytest.raises(ValueError, match="of ours"):
        evaluate.exit_code(lambda: (_ for _ in ()).throw(ValueError("a mistake of ours")))


def test_no_model_and_no_data(gopro, tiny_checkpoint, tmp_path, capsys):
    assert quick(tmp_path / "none.safetensors", gopro, tmp_path) == 1
    assert quick(tiny_checkpoint, tmp_path / "none", tmp_path) == 1
    assert "there is no checkpoint" in capsys.readouterr().err
