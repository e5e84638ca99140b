"""`make score`: both sets, its verdicts, its files."""
import dataclasses
import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_config

from benchmarks import headroom, score
from train import evaluate
from vdd_model.config import FusionConfig
from vdd_model.inference.pipeline import DeblurOptions, Deblurrer
from vdd_model.inference.prior import Prior
from vdd_model.measure import report
from vdd_model.networks.model import DeblurModel


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    g = torch.Generator().manual_seed(0)
    picture = F.interpolate(torch.rand(1, 3, 12, 16, generator=g), size=(96, 128), mode="bicubic")[0].movedim(0, -1)
    (root / "val_photos").mkdir()
    for i in range(2):
        report.to_image(picture.flip(i)).save(root / "val_photos" / f"{i}.png")
    for folder, gain in (("blur", 0.9), ("sharp", 1.0)):
        where = root / "gopro_layout" / "test" / "WALK" / folder
        where.mkdir(parents=True)
        for i in range(2):
            report.to_image(picture[:24, :32].roll(i, 1) * gain).save(where / f"{i}.png")
    return root


def test_score(data, tiny_checkpoint, tmp_path, capsys):
    arguments = [str(tiny_checkpoint), "--data", str(data), "--out", str(tmp_path), "--steps", "1", "2", "--ensemble", "2", "--frames", "2",
                 "--size", "32", "--device", "cpu"]
    assert score.main(arguments) == 0
    text = capsys.readouterr().out
    assert "NOT met: PSNR above the blurred input" in text and "synthesised motion: 2 clips" in text and "real footage: 1 clips" in text
    result = json.loads((tmp_path / "score.json").read_text())
    rows = ["blurred input", "autoencoder's round trip", "1 step", "2 steps", "1 step, mean of 2 orientations",
            *score.VARIANTS, score.ALONE, score.REPEATED, score.LATENTS, score.SHARP, "truth"]
    assert list(result["totals"]["real footage"]) == rows
    pictures = {f"{kind}_{which}.png" for kind in ("panel", "error") for which in ("worst", "median", "best")}
    assert {p.name for p in tmp_path.glob("*.png")} == {"score.png", *pictures}
    assert score.main(arguments) == 0                              # nothing is computed again
    assert json.loads((tmp_path / "score.json").read_text()) == result


def test_the_rows_with_a_prior_ask_it_once_for_a_frame_as_it_lies():
    config = tiny_config()
    config = dataclasses.replace(config, vae=dataclasses.replace(config.vae, fusion=FusionConfig((8, 8), (1, 1))))
    deblurrer, asked = Deblurrer(DeblurModel(config).eval(), device="cpu", dtype=torch.float32), []
    deblurrer.prior.path = "there"
    prior = Prior(torch.nn.Module())
    prior.turned = lambda frame: asked.append(frame) or frame / 2
    deblurrer.prior.load = lambda path: prior
    options, frames = DeblurOptions(prior="none", color="none"), torch.rand(3, 32, 32, 3)
    rows = score.with_prior(deblurrer, options)
    pair = evaluate.Pair("clip", 3, lambda: iter(frames), lambda: iter(frames))
    shown = {name: torch.stack([frame for chunk in setting(pair) for frame in chunk.view(-1, 32, 32, 3)]) for name, setting in rows.items()}
    assert list(shown) == [score.PRIOR, score.WITH_PRIOR, score.ALONE_WITH_PRIOR, score.ALL_WITH_PRIOR] and len(asked) == 6
    assert torch.allclose(shown[score.PRIOR], frames / 2, atol=1e-3)
    for name in list(shown)[1:]:        # untrained: the mean of the blurred frame and the prior's
        assert torch.allclose(shown[name], 0.75 * frames, atol=1e-3)
    deblurrer.model.vae.fusion = None
    assert score.with_prior(deblurrer, options) == {}


def test_sharp_latents_do_not_depend_on_how_many_frames_are_decoded_at_a_time(tiny_model, monkeypatch):
    blurred, sharp = torch.rand(2, 5, 24, 40, 3, generator=torch.Generator().manual_seed(0))
    pair = evaluate.Pair("clip", 5, lambda: iter(blurred), lambda: iter(sharp))
    outputs = []
    for chunk in (1, 2, 5):
        monkeypatch.setattr(score, "CHUNK", chunk)
        deblurrer = Deblurrer(tiny_model, device="cpu", dtype=torch.float32)
        outputs.append(torch.stack(list(score.sharp_latents(deblurrer, DeblurOptions())(pair))))
        torch.testing.assert_close(outputs[-1], outputs[0], rtol=0, atol=1e-5)
    assert outputs[0].shape == blurred.shape


@pytest.mark.parametrize("change", ["nothing", "dtype", "data"])
def test_finished_clips_are_taken_from_the_same_run_only(data, tiny_checkpoint, tmp_path, monkeypatch, change):
    scored, original = [], evaluate.score
    monkeypatch.setattr(evaluate, "score", lambda output, pair, **k: scored.append(pair.name) or original(output, pair, **k))
    arguments = ["--out", str(tmp_path / "out"), "--steps", "2", "--ensemble", "--photos", "1", "--frames", "2", "--size", "32",
                 "--clip-frames", "1", "--device", "cpu", "--dtype", "float32"]
    assert score.main([str(tiny_checkpoint), "--data", str(data), *arguments]) == 0
    count = len(scored)
    assert count == 2 * (8 + len(score.VARIANTS))
    folder = shutil.copytree(data, tmp_path / "copy") if change == "data" else data
    arguments += ["--dtype", "bfloat16"] if change == "dtype" else []
    assert score.main([str(tiny_checkpoint), "--data", str(folder), *arguments]) == 0
    assert len(scored) == count * (1 if change == "nothing" else 2)


def test_the_clips_are_the_same_every_time(data):
    first, second = (score.photo_pairs(data / "val_photos", 2, 32) for _ in range(2))
    for a, b in zip(first, second):
        assert a.name == b.name and all(map(torch.equal, a.blurred(), b.blurred())) and all(map(torch.equal, a.sharp(), b.sharp()))
    blurred, sharp = next(iter(first[0].blurred())), next(iter(first[0].sharp()))
    assert blurred.shape == sharp.shape == (32, 32, 3) and 0 <= sharp.min() and sharp.max() <= 1


def test_verdicts():
    def row(psnr, sharpness, error):
        return {"psnr": psnr, "ssim_gaussian": psnr / 40, "temporal_error": error, "sharpness": sharpness}

    totals = {"blurred input": row(25, 10, 5), "1 step": row(27.5, 20, 4), "4 steps": row(25, 30, 4), score.SHARP: row(33, 20, 1)}
    assert [ok for *_, ok in score.asked(totals)] == [True, True, True, True, True, False]
    totals["4 steps"], totals[score.SHARP] = row(23, 15, 4), row(35, 20, 1)
    assert [ok for *_, ok in score.asked(totals)] == [True, True, True, False, False, True]


def test_without_data(tiny_checkpoint, tmp_path, capsys):
    assert score.main([str(tiny_checkpoint), "--data", str(tmp_path / "none"), "--device", "cpu"]) == 1
    assert "the test clips are not here" in capsys.readouterr().err


def test_the_oracle_of_the_headroom_undoes_a_straight_streak():
    noise = torch.randn(3, 96, 96, generator=torch.Generator().manual_seed(1))
    f = (torch.fft.fftfreq(96)[:, None].square() + torch.fft.fftfreq(96)[None].square()).sqrt().clamp_min(1 / 96)
    sharp = torch.fft.ifft2(torch.fft.fft2(noise) / f).real
    sharp = (sharp / sharp.std() / 6 + 0.5).clamp(0, 1)
    blurred = F.avg_pool2d(F.pad(sharp[None], (3, 3, 0, 0), mode="reflect"), (1, 7), stride=1)[0]
    gain = 10 * torch.log10((blurred - sharp).square().mean() / (headroom.oracle(blurred, sharp, 17) - sharp).square().mean())
    assert gain > 2                                       # dB
