"""The evaluation: its numbers, its files, its resume, its sentences."""
import copy
import csv
import json
import os
import re
import shutil

import pytest
import torch

from train import evaluate, exit_code
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


def test_only_the_same_run_takes_finished_parts(gopro, tiny_checkpoint, tmp_path, monkeypatch):
    scored, original = [], evaluate.score
    monkeypatch.setattr(evaluate, "score", lambda output, pair, **k: scored.append(pair.name) or original(output, pair, **k))
    for more, count in (([], 4), ([], 0), (["--tile", "16"], 4)):
        scored.clear()
        assert evaluate.main([str(tiny_checkpoint), str(gopro), "--out", str(tmp_path), "--steps", "1", "--device", "cpu", "--no-lpips",
                              "--sequences", "SEQ_A", "--frames", "2", "--no-warp", *more]) == 0
        assert len(scored) == count


def test_a_fingerprint_changes_with_all_that_numbers_depend_on(tiny_model, tiny_checkpoint, tmp_path, monkeypatch):
    checkpoint, deblurrer = tmp_path / "model.safetensors", Deblurrer(copy.deepcopy(tiny_model), device="cpu")
    shutil.copy(tiny_checkpoint, checkpoint)
    monkeypatch.setattr(evaluate.report, "lpips_note", lambda: "not here")

    def text(*more, root=tmp_path, lpips: bool = False, **options) -> str:
        return evaluate.fingerprint_of(checkpoint, deblurrer, DeblurOptions(**options), root, lpips, *more)

    assert text() == text(lpips=True)                        # where LPIPS is not installed nobody measures it
    seen = [text(), text(tile=16), text(root=tmp_path / "other"), text("warp")]
    monkeypatch.setattr(evaluate.report, "lpips_note", lambda: "")
    seen.append(text(lpips=True))
    monkeypatch.setattr(deblurrer, "device", torch.device("cuda:1"))
    seen.append(text())
    deblurrer.model.bfloat16()
    seen.append(text())
    os.utime(checkpoint, (1, 1))                             # a later file of the same name
    seen += [text(), text(prior="none")]
    deblurrer.prior.path = tmp_path / "prior.safetensors"
    for content in (b"1", b"12"):
        deblurrer.prior.path.write_bytes(content)
        seen.append(text())
    assert text(prior="none") == seen[-3]
    source = tmp_path / "vdd_model" / "__init__.py"
    source.parent.mkdir()
    monkeypatch.setattr(evaluate.vdd_model, "__file__", str(source))
    for code in ("a = 1", "a = 2"):
        source.write_text(code)
        evaluate.code_version.cache_clear()
        seen.append(text())
    evaluate.code_version.cache_clear()
    assert len(set(seen)) == len(seen) == 13


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
    (None, "there is no checkpoint"),
    (["--sequences", "NONE"], "no sequence .* of these names .*SEQ_A"), (["--crop", "64"], "smaller than the crop"),
    (["--layout", "imax"], "no layout is called 'imax'"), (["--color", "green"], "color must be"),
    (["--prior", "/none.safetensors"], "/none.safetensors"),
])
def test_one_sentence_for_the_user(gopro, tiny_checkpoint, tmp_path, capsys, more, words):
    assert quick(tmp_path / "none.safetensors" if more is None else tiny_checkpoint, gopro, tmp_path, *(more or ())) == 1
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
        exit_code(lambda: (_ for _ in ()).throw(ValueError("a mistake of ours")))
