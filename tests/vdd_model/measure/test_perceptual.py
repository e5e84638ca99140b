"""Measures of other packages: taken where they are installed, over clips that arrive in pieces, and silent where they are not."""
import pytest
import torch
from media_tools import pattern

from vdd_model.measure import metrics, perceptual, report


def clips():
    truth = torch.stack([torch.from_numpy(pattern(i)) for i in range(6)])
    return truth, (truth + torch.roll(truth, 3, 2)) / 2


def needs(name):
    if name not in perceptual.present():
        pytest.skip(f"no package or program for {name} here")


def scored(output, truth, chunk=6, **keys):
    scorer = metrics.Scorer(lpips=False, warp=False, perceptual=True, **keys)
    for a, b in zip(output.split(chunk), truth.split(chunk)):
        scorer.add(a, b)
    return scorer.result()


@pytest.mark.parametrize("name, best", [("flip", 0.0), ("jod", 10.0), ("vmaf", 99.0)])
def test_what_is_equal_looks_equal(name, best):
    needs(name)
    truth, blurred = clips()
    same, worse = scored(truth, truth)[name], scored(blurred, truth)[name]
    assert same == pytest.approx(best, abs=1.01) and (worse > same + 0.02 if name == "flip" else worse < same - 1)
    assert scored(blurred, truth, chunk=4)[name] == pytest.approx(worse, abs=1e-6)


def test_the_rate_matters_to_the_eye():
    needs("jod")
    truth, blurred = clips()
    assert scored(blurred, truth, rate=24.0)["jod"] != scored(blurred, truth, rate=120.0)["jod"]


@pytest.mark.parametrize("side", [1, 9])
def test_tiny_frames_are_no_error(side):
    result = scored(torch.rand(2, side, side, 3), torch.rand(2, side, side, 3))
    assert result["psnr"] > 0 and result["vmaf"] is None


def test_compare_prints_them_where_they_are(tmp_path, monkeypatch):
    from vdd_model.media.video import write_video

    truth, blurred = clips()
    write_video(tmp_path / "a.mp4", blurred)
    write_video(tmp_path / "b.mp4", truth)
    said: list[str] = []
    names = perceptual.present()
    report.compare(tmp_path / "a.mp4", tmp_path / "b.mp4", tmp_path / "out", warp=False, perceptual=True, say=said.append)
    titles = [metrics.COLUMNS[key][0] for key in names]
    assert all(title in said[0] for title in titles) and not list(tmp_path.glob("vdd-measure-*"))
    monkeypatch.setattr(perceptual, "present", list)
    said.clear()
    report.compare(tmp_path / "a.mp4", tmp_path / "b.mp4", tmp_path / "out", warp=False, perceptual=True, say=said.append)
    assert "PSNR" in said[0] and not any(title in said[0] for title in titles)
