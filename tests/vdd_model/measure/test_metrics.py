"""Measures against other implementations and literal formulas; those of other packages where they are installed, and silent elsewhere."""
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from kornia.metrics import ssim3d
from media_tools import patterns
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from vdd_model.measure import metrics, perceptual, report
from vdd_model.measure.flow import dense_flow, warp
from vdd_model.media.video import write_video


@pytest.fixture(scope="module")
def clips():
    """Two random smooth clips (3, 40, 52, 3), like enough for middling scores."""
    g = torch.Generator().manual_seed(0)
    truth = F.interpolate(torch.rand(3, 3, 10, 13, generator=g), size=(40, 52), mode="bicubic").movedim(1, -1).clamp(0, 1)
    return (truth + 0.08 * torch.randn(truth.shape, generator=g)).clamp(0, 1), truth


def eight_bit(x):
    return (x * 255).round().to(torch.uint8).numpy()


def test_psnr_agrees_with_scikit_image(clips):
    a, b = clips
    for value, x, y in zip(metrics.psnr(a, b), a, b):
        assert abs(value - peak_signal_noise_ratio(eight_bit(y), eight_bit(x), data_range=255)) < 1e-6
    assert math.isinf(metrics.psnr(a, a)[0])
    pytest.raises(ValueError, metrics.psnr, a, b[:, :20]).match("two clips .* of one size")


def test_ssim_gaussian_agrees_with_scikit_image(clips):
    a, b = (x.repeat(1, 4, 3, 1)[:, :, :150] for x in clips)   # several parts, the last ones small
    ours = metrics.ssim_gaussian(a, b)
    for value, x, y in zip(ours, a, b):
        theirs = structural_similarity(eight_bit(y), eight_bit(x), gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
                                       data_range=255, channel_axis=-1)
        assert abs(value - theirs) < 1e-9
    assert 0.1 < ours.min() and ours.max() < 0.95
    assert metrics.ssim_gaussian(a, a).allclose(torch.ones(3, dtype=torch.float64))
    assert metrics.ssim_gaussian(a[:, :8], b[:, :8]).isnan().all()


def test_ssim_matlab_agrees_with_kornia_on_repeated_edges(clips):
    a, b = clips
    small = [metrics.to_levels(v[0, :16, :16]).movedim(-1, 0)[None, None] for v in (a, b)]
    theirs = ssim3d(*(F.pad(v, (5,) * 6, mode="replicate") for v in small), 11, max_val=255.0, padding="valid").mean()
    assert abs(metrics.ssim_matlab(a[:1, :16, :16], b[:1, :16, :16])[0] - theirs) < 1e-6
    assert (metrics.ssim_matlab(a, b) > metrics.ssim_gaussian(a, b) + 0.01).all()     # the family with the higher values: never mix the two


def test_lpips_never_downloads(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *a, **k: pytest.fail("a download was tried"))
    metrics.lpips_model.cache_clear()
    assert metrics.lpips_alex(*clips) is None
    assert "not on this machine" in metrics.lpips_model()[1] or "not installed" in metrics.lpips_model()[1]
    metrics.lpips_model.cache_clear()


def test_temporal_error_is_literal(clips):
    a, b = clips
    expected = [float((((a[t + 1] - a[t]) - (b[t + 1] - b[t])).abs()).double().mean() * 255) for t in range(2)]
    assert metrics.temporal_error(a, b).tolist() == pytest.approx(expected, abs=1e-4)
    assert metrics.temporal_error(b + 0.0, b).abs().max() == 0 and metrics.temporal_error(a[:1], b[:1]).numel() == 0


def test_flow_finds_a_known_motion():
    g = torch.Generator().manual_seed(1)
    big = F.interpolate(torch.rand(1, 1, 24, 30, generator=g), size=(120, 150), mode="bicubic")
    for dx, dy in ((3, 0), (-5, 4), (0, -9)):
        first, second = big[..., 20:100, 20:130], big[..., 20 + dy:100 + dy, 20 + dx:130 + dx]
        flow = dense_flow(first, second)[..., 12:-12, 12:-12]
        # second(p) = first(p + d), so the flow from first to second is -d
        assert (flow[:, 0] + dx).abs().mean() < 0.3 and (flow[:, 1] + dy).abs().mean() < 0.3, (dx, dy)
    still = torch.zeros(1, 2, 80, 110)
    assert warp(first, still).allclose(first, atol=1e-5)


def test_warp_error_sees_flicker_but_not_motion():
    g = torch.Generator().manual_seed(2)
    big = F.interpolate(torch.rand(1, 3, 24, 30, generator=g), size=(96, 120), mode="bicubic").movedim(1, -1).clamp(0, 1)
    clip = torch.cat([big[:, 8:72, 10 + 2 * t:90 + 2 * t] for t in range(4)])
    flicker = clip * torch.tensor([1.0, 0.9, 1.0, 0.9]).view(4, 1, 1, 1)
    calm, busy = metrics.warp_error(clip, clip).mean(), metrics.warp_error(flicker, clip).mean()
    assert metrics.temporal_error(clip * 0 + clip[:1], clip).mean() > 5          # the motion itself is large
    assert calm < 1.0 and busy > 8 * calm


def test_sharpness_falls_with_blur_and_color_shift_is_in_levels(clips):
    a, b = clips
    smooth = F.avg_pool2d(a.movedim(-1, 1), 3, 1, 1).movedim(1, -1)
    assert (metrics.sharpness(smooth) < 0.5 * metrics.sharpness(a)).all()
    with warnings.catch_warnings(action="error"):
        assert metrics.sharpness(a[:, :2]).isnan().all()       # too small for any value, without a warning
    assert metrics.color_shift(b * 0.5 + torch.tensor([0, 0.01, 0]), b * 0.5).tolist() == pytest.approx([2.55] * 3, abs=1e-3)


def test_scorer_in_pieces_equals_whole(clips):
    a, b = clips
    whole, pieces = metrics.Scorer(), metrics.Scorer()
    whole.add(a, b, a)
    for i in range(3):
        pieces.add(a[i:i + 1], b[i:i + 1], a[i:i + 1])
    assert whole.result() == pytest.approx(pieces.result())
    assert whole.result()["psnr"] == pytest.approx(float(metrics.psnr(a, b).mean()))
    assert len(whole.values["temporal_error"]) == 2 and whole.result()["color_shift"] == 0


def test_means():
    assert metrics.mean([float("inf"), 20.0]) == 60.0
    assert metrics.mean([]) is None and metrics.mean([math.nan]) is None
    total = metrics.pool([(3, {"psnr": 30.0}), (1, {"psnr": 34.0, "lpips": None})])
    assert total["psnr"] == 31.0 and total["lpips"] is None


def moving():
    truth = patterns(6)
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
    truth, blurred = moving()
    same, worse = scored(truth, truth)[name], scored(blurred, truth)[name]
    assert same == pytest.approx(best, abs=1.01) and (worse > same + 0.02 if name == "flip" else worse < same - 1)
    assert scored(blurred, truth, chunk=4)[name] == pytest.approx(worse, abs=1e-6)
    assert name != "jod" or scored(blurred, truth, rate=120.0)[name] != worse                # the rate matters to the eye


@pytest.mark.parametrize("side", [1, 9])
def test_tiny_frames_are_no_error(side):
    result = scored(torch.rand(2, side, side, 3), torch.rand(2, side, side, 3))
    assert result["psnr"] > 0 and result["vmaf"] is None


def test_compare_prints_them_where_they_are(tmp_path, monkeypatch):
    for name, frames in zip(("b.mp4", "a.mp4"), moving()):
        write_video(tmp_path / name, frames)
    titles = [metrics.COLUMNS[key][0] for key in perceptual.present()]
    for there in (True, False):
        said: list[str] = []
        report.compare(tmp_path / "a.mp4", tmp_path / "b.mp4", tmp_path / "out", warp=False, perceptual=True, say=said.append)
        assert "PSNR" in said[0] and all((title in said[0]) == there for title in titles) and not list(tmp_path.glob("vdd-measure-*"))
        monkeypatch.setattr(perceptual, "present", list)
