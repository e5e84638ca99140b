"""Blur synthesis: purity, geometry, the truth's place in the exposure, sensor and codec."""
import dataclasses
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from train.synthesis import camera, motion
from train.synthesis.blur import render, synthesize
from train.synthesis.scene import BlurConfig, plan
from vdd_model.config import ConfigError

CLEAN = BlurConfig(noise=0.0, codec=0.0, layers=0.0, saturation=0.0, exposure=(1.0, 1.0))


@pytest.fixture(scope="module")
def photos() -> list[torch.Tensor]:
    """Textured pictures: noise of several octaves."""
    g = torch.Generator().manual_seed(3)
    out = []
    for height, width in ((500, 700), (420, 420), (640, 480)):
        x = sum(F.interpolate(torch.rand(1, 3, height // s, width // s, generator=g), (height, width), mode="bicubic") * w
                for s, w in ((1, 0.2), (4, 0.3), (16, 0.5)))[0]
        out.append((x.clamp(0, 1) * 255).byte())
    return out


def test_a_sample_depends_on_seed_and_index_alone(photos):
    before = torch.get_rng_state(), np.random.get_state()
    together = synthesize(photos, 7, [0, 1, 2, 3], num_frames=3, size=64)
    assert torch.equal(torch.get_rng_state(), before[0])                       # nor on the global states
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), before[1]))
    for x in together:
        assert x.shape == (4, 3, 3, 64, 64) and x.dtype == torch.float32 and 0 <= x.min() and x.max() <= 1
    assert torch.allclose(together[0] * 255, (together[0] * 255).round(), atol=1e-4)
    for index in (2, 0):
        alone = synthesize(photos, 7, [index], num_frames=3, size=64)
        for a, b in zip(together, alone):
            assert torch.equal(a[index], b[0])
    other = synthesize(photos, 8, [0], num_frames=3, size=64)
    assert not torch.equal(together[1][0], other[1][0])


def test_truth_is_the_centre_of_the_exposure(photos):
    """A straight, even motion blurs symmetrically about its truth: the least-squares shift between them vanishes, clip by clip."""
    config = dataclasses.replace(CLEAN, near_sharp=0.0, extent=(4.0, 8.0), linear=0.0)
    shifts = []
    for index in range(60):
        drawn = plan(photos, 2, index, 2, 96, config)
        if not _straight(drawn):
            continue
        clips = synthesize(photos, 2, [index], num_frames=2, size=96, config=config)
        blurred, sharp = (F.avg_pool2d(x[0, :, 0].mean(0)[None, None], 9, 1)[0, 0] for x in clips)
        gy, gx = torch.gradient(sharp)
        a = torch.tensor([[(gx * gx).sum(), (gx * gy).sum()], [(gx * gy).sum(), (gy * gy).sum()]])
        d = blurred - sharp
        shifts.append(torch.linalg.solve(a, torch.stack([(gx * d).sum(), (gy * d).sum()])))
    shifts = torch.stack(shifts)
    assert len(shifts) >= 8
    assert shifts.abs().median() < 0.1 and shifts.mean(0).abs().max() < 0.1


def _straight(drawn) -> bool:
    """Whether the crop's middle moves evenly: the exposure's middle lies half way between its ends."""
    m = drawn.background.frames[0]
    p = motion.apply(m, np.array([[48.0, 48.0]]))[:, 0] / np.abs(m[0, 0, 0])
    return len(p) >= 3 and np.linalg.norm((p[0] + p[-1]) / 2 - p[len(p) // 2]) < 0.02 * np.linalg.norm(p[-1] - p[0])


def test_extent_is_what_was_asked(photos):
    for extent in (2.0, 12.0, 30.0):
        config = dataclasses.replace(CLEAN, near_sharp=0.0, extent=(extent, extent * 1.001))
        found = []
        for index in range(12):
            rng = np.random.default_rng([1, index])
            lens = motion.random_lens(rng, 128, extent * 10)
            found.append(motion.Motion(rng, extent, 0.6, 5, 128, lens, 1 + index % 4, 2.0).lengths.mean())
            drawn = plan(photos, 1, index, 5, 128, config)
            assert all(n % 2 == 1 and n <= config.max_subsamples for n in drawn.counts)
        assert extent * 0.9 < np.median(found) < extent * 2          # `lengths` are of each frame's fastest point


def test_subsamples_are_at_most_a_pixel_apart(photos):
    config = dataclasses.replace(CLEAN, extent=(3.0, 25.0))
    for index in range(10):
        drawn = plan(photos, 4, index, 4, 64, config)
        for truth, matrices in zip(drawn.background.truth, drawn.background.frames):
            inverse = np.linalg.inv(truth) @ matrices                                # in output pixels
            p = motion.apply(inverse, motion.grid_points(64))
            if len(p) > 1:
                assert np.linalg.norm(np.diff(p, axis=0), axis=-1).max() < 1.5


def test_near_sharp_clips_are_near_sharp(photos):
    blurred, sharp = synthesize(photos, 0, range(4), num_frames=2, size=64, config=dataclasses.replace(CLEAN, near_sharp=1.0))
    assert (blurred - sharp).square().mean(dim=(1, 2, 3, 4)).max() < 10 ** -2.6


def test_path_is_c1_over_frames():
    for order in (1, 2, 3, 4):
        times = np.linspace(0, 8, 4001)
        path = motion.random_path(np.random.default_rng(order), order, 8, times, 6)
        speed = np.diff(path, axis=0) / np.diff(times)[:, None]
        assert np.abs(np.diff(speed, axis=0)).max() < 0.03 * np.abs(speed).max() + 1e-9, order


def test_kinked_path_goes_straight_between_the_middles_of_exposures_and_turns_there():
    times = np.arange(0, 8.01, 0.125)
    speed = np.diff(motion.random_path(np.random.default_rng(0), 0, 8, times, 6), axis=0) / 0.125
    turns = np.abs(np.diff(speed, axis=0)).max(axis=1)
    middles = np.isclose(times[1:-1] % 1, 0.5)
    assert turns[~middles].max() < 1e-9 and turns[middles].min() > 0.05


@pytest.mark.parametrize("share, bent", [(0.0, False), (1.0, True)])
def test_kinks_is_the_share_of_motions_that_turn_within_an_exposure(photos, share, bent):
    """One exposure per frame interval, no layers: the two halves of a frame's path against each other, in output pixels."""
    config = dataclasses.replace(CLEAN, extent=(8.0, 8.1), near_sharp=0.0, duty=(1.0, 1.0), layers=0.0, kinks=share)
    ratios = []
    for index in range(30):
        background = plan(photos, 0, index, 5, 64, config).background
        for matrices in background.frames:
            inverse = np.linalg.inv(matrices[len(matrices) // 2]) @ matrices
            first, middle, last = motion.apply(inverse[[0, len(inverse) // 2, -1]], motion.grid_points(64))
            halves = [np.linalg.norm(h, axis=-1).mean() for h in (middle - first, last - middle)]
            ratios.append(np.linalg.norm(first + last - 2 * middle, axis=-1).mean() / np.mean(halves))
    assert (np.median(ratios) > 0.5) == bent


def test_video_moves_on_between_frames(photos):
    """The truth of neighbouring frames differs, by a continuing motion: frame 2 lies beyond frame 1 as seen from frame 0."""
    config = dataclasses.replace(CLEAN, near_sharp=0.0, extent=(6.0, 6.1), duty=(0.9, 1.0))
    drawn = plan(photos, 11, 3, 3, 64, config)
    p = motion.apply(np.linalg.inv(drawn.background.truth[0]) @ drawn.background.truth, np.array([[32.0, 32.0]]))[:, 0]
    assert np.linalg.norm(p[1] - p[0]) > 1 and np.linalg.norm(p[2] - p[1]) > 1


def test_ground_truth_is_never_degraded(photos):
    noisy = dataclasses.replace(CLEAN, noise=1.0, codec=1.0, noise_gain=(20.0, 20.0), quality=(60.0, 61.0))
    blurred, sharp = synthesize(photos, 9, [0, 1], num_frames=2, size=64, config=noisy)
    clean, truth = synthesize(photos, 9, [0, 1], num_frames=2, size=64, config=CLEAN)
    assert torch.equal(sharp, truth)
    assert (blurred - clean).abs().mean() > 0.004


def test_layers_move_and_are_blurred(photos):
    config = dataclasses.replace(CLEAN, layers=1.0, layer_counts=(0.0, 0.0, 0.0, 1.0), layer_size=(0.6, 1.0))
    sample = plan(photos, 0, 0, 3, 64, config)
    assert len(sample.layers) == 4
    blurred, sharp = render(sample, photos, 64, "cpu")
    for layer in sample.layers:
        there = motion.apply(np.linalg.inv(layer.truth), np.zeros((1, 2)))[:, 0]                 # its middle, on the crop
        ends = motion.apply(np.linalg.inv(np.stack([layer.frames[1][0], layer.frames[1][-1]])), np.zeros((1, 2)))[:, 0]
        assert np.linalg.norm(there[2] - there[0]) > 0.2 and np.linalg.norm(ends[1] - ends[0]) > 0.05
    sample.layers = []
    bare_blurred, bare_sharp = render(sample, photos, 64, "cpu")
    covered = (sharp - bare_sharp).abs().amax(0) > 0.1
    assert covered.float().mean() > 0.1                                                          # they are seen
    edge = ((blurred - bare_blurred).abs().amax(0) > 0.1) & ~covered
    assert edge.any()                                                                            # and smeared over what lies beside them


def test_small_photographs_are_mirrored_not_left_black(photos):
    small = [photos[0][:, :90, :90].clone().clamp_min(60)]
    config = dataclasses.replace(CLEAN, near_sharp=0.0, extent=(25.0, 30.0))
    blurred, sharp = synthesize(small, 0, range(3), num_frames=3, size=64, config=config)
    assert blurred.min() > 0.1 and sharp.min() > 0.05


@pytest.mark.parametrize("linear, grey", [(False, 0.5), (True, 0.7354)])
def test_a_moving_edge_of_black_and_white_is_grey_in_srgb_and_brighter_in_light(linear, grey):
    """GoPro's `blur` against averaging in linear light."""
    blurred = camera.degrade(torch.full((1, 3, 8, 8), 0.5), linear, **camera.CLEAN)
    assert blurred.allclose(torch.tensor(grey), atol=1 / 255)


def test_noise_has_the_asked_variance():
    light = torch.full((4, 3, 128, 128), 0.5)
    chosen = dict(shot=1e-3, read=5e-3, red=2.0, blue=1.5, phase=(0, 1), starts=[0, 100_000, 300_000, 900_000])
    noise = camera.bayer_noise(light, **chosen) - light
    assert abs(noise.mean().item()) < 1e-3
    for channel, gain in ((0, 2.0), (1, 1.0), (2, 1.5)):
        variance = (0.5 / gain * 1e-3 + 25e-6) * gain**2
        # a bilinear demosaic: known sites keep the variance, interpolated ones average 2 or 4 neighbours
        share = (1 + 0.5 * 2 + 0.25) / 4 if channel != 1 else (2 + 0.25 * 2) / 4
        assert noise[:, channel].var().item() == pytest.approx(variance * share, rel=0.05)


def test_jpeg_agrees_with_libjpeg(photos):
    x = photos[0][:, 100:228, 100:196].float()[None] / 255
    for quality in (60, 90):
        buffer = io.BytesIO()
        Image.fromarray((x[0] * 255).byte().permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=quality, subsampling=2)
        reference = torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1).float()
        ours = camera.jpeg(x, quality)[0] * 255
        error = (x[0] * 255 - reference).square().mean()
        assert (ours - reference).square().mean() < 0.15 * error, quality


def test_h264_keeps_shape_and_degrades_more_at_higher_crf(photos):
    x = photos[0][:, :65, :97].float()[None].repeat(3, 1, 1, 1) / 255
    errors = [camera.h264(x, crf) - x for crf in (4, 12, 34)]
    assert camera.h264(x, 20).shape == x.shape
    assert errors[1].square().mean() < errors[2].square().mean()
    assert errors[0].mean((0, 2, 3)).abs().max() < 0.2 / 255           # no color is darker behind it


def test_homographies_are_rotations_and_translations_before_a_plane():
    lens = motion.Lens(focal=120.0, centre=(30.0, 20.0), radius=40.0, normal=(0.3, -0.2))
    yaw, pitch, roll = 0.2, -0.1, 0.3

    def turn(axis: int, angle: float) -> np.ndarray:
        m = np.eye(3)
        i, j = (axis + 1) % 3, (axis + 2) % 3
        m[i, i] = m[j, j] = np.cos(angle)
        m[i, j], m[j, i] = -np.sin(angle), np.sin(angle)
        return m

    rotation = turn(1, yaw) @ turn(0, pitch) @ turn(2, roll)
    k = np.array([[120.0, 0, 30], [0, 120, 20], [0, 0, 1]])
    shift = np.outer([0.1, 0.05, np.exp(0.2) - 1], [0.3, -0.2, 1.0])
    expected = k @ (rotation + shift) @ np.linalg.inv(k)
    assert np.allclose(motion.homographies(np.array([[yaw, pitch, roll, 0.1, 0.05, 0.2]]), lens)[0], expected)
    assert np.allclose(motion.homographies(np.zeros((1, 6)), lens)[0], np.eye(3), atol=1e-12)


def test_another_process_and_another_thread_count_make_the_same_samples(photos, tmp_path):
    torch.save(photos, tmp_path / "photos.pt")
    code = ("import sys, torch; from train.synthesis.blur import synthesize; torch.set_num_threads(2); "
            "torch.save(synthesize(torch.load(sys.argv[1]), 5, [3, 1], num_frames=2, size=48), sys.argv[2])")
    root = Path(__file__).resolve().parents[3]
    subprocess.run([sys.executable, "-c", code, tmp_path / "photos.pt", tmp_path / "out.pt"], check=True, cwd=root)
    here = synthesize(photos, 5, [1, 3], num_frames=2, size=48)
    for mine, other in zip(here, torch.load(tmp_path / "out.pt")):
        assert torch.allclose(mine, other.flip(0), atol=1.01 / 255)
        assert (mine - other.flip(0)).abs().mean() < 1e-5


@pytest.mark.parametrize("words, keys", [
    *((key, {key: value}) for key, value in (
        ("extent", (0.0, 5.0)), ("extent", (9.0, 5.0)), ("noise", 1.5), ("quality", (60.0,)), ("sub_step", 0.0), ("relief", -0.1),
        ("relief_size", (0.0, 9.0)), ("kinks", 2.0), ("repeat_lengths", (1, 2)), ("hard_cuts", 1.5))),
    ("single and blur.repeats", {"single": 0.6, "repeats": 0.5})])
def test_impossible_settings_are_refused_with_the_keys_name(words, keys):
    with pytest.raises(ConfigError, match=words):
        BlurConfig(**keys)


def test_no_photograph_is_enlarged_where_others_are_large_enough():
    """A photograph of 100 pixels would have to grow for a crop of 96; one of 400 is there."""
    photos = [torch.zeros(3, 100, 100, dtype=torch.uint8), torch.zeros(3, 400, 400, dtype=torch.uint8)]
    assert {plan(photos, 1, i, 2, 96, BlurConfig(layers=0.0)).background.photo for i in range(20)} == {1}
    assert {plan(photos[:1], 1, i, 2, 96, BlurConfig(layers=0.0)).background.photo for i in range(3)} == {0}


def test_a_layer_that_reaches_behind_the_camera_is_transparent_there():
    """Where the homography's denominator is zero or less: neither NaN, which the codec would spread, nor the layer's mirror image."""
    from train.synthesis.blur import _warp
    matrix = np.array([[[1, 0, -16], [0, 1, -16], [-1, 0, 20.5]]]) / 32              # 0 / 0 nowhere, x / 0 at the column of 20.5
    seen = _warp(torch.ones(1, 4, 8, 8), matrix, (0, 0, 32, 32), "bilinear", "zeros")
    assert seen.isfinite().all() and seen[..., :18].amax() == 1 and not seen[..., 20:].any()


def test_no_motion_brings_the_crop_to_the_horizon_of_the_plane_it_sees():
    """Sample 6121 of stream 1 once spanned 160 megapixels of mirrored photograph, 5243 of them 20: the camera tilted until it looked
    along the plane."""
    config, photo = BlurConfig(extent=(1.0, 20.0), near_sharp=0.1, max_step=24.0), torch.zeros(3, 400, 600, dtype=torch.uint8)
    for index in (6121, 5243):
        x0, y0, x1, y1 = plan([photo], 1, index, 5, 96, config).background.region
        assert (x1 - x0) * (y1 - y0) < 3e6


RELIEF = dataclasses.replace(CLEAN, extent=(8.0, 8.1), near_sharp=0.0, duty=(0.9, 1.0), relief=1.0, relief_motion=(0.4, 0.41))


def test_a_relief_bends_what_moves_and_leaves_the_middle_frames_truth(photos):
    """Its depth is seen through motion alone: in the clip's middle nothing has moved yet, so only that frame's blur tells."""
    for index in range(4):
        sample = plan(photos, 3, index, 3, 64, RELIEF)
        bent, bent_sharp = render(sample, photos, 64, "cpu")
        sample.relief = None
        flat, flat_sharp = render(sample, photos, 64, "cpu")
        assert torch.equal(bent_sharp[:, 1], flat_sharp[:, 1])
        for now, then in ((bent[:, 1], flat[:, 1]), (bent_sharp[:, 0], flat_sharp[:, 0]), (bent_sharp[:, 2], flat_sharp[:, 2])):
            assert (now - then).abs().mean() > 0.004


def test_a_relief_does_not_bend_the_truth():
    """What rises from left to right in a photograph does so in the clip, as far as it does before a plane."""
    ramp = (torch.linspace(20, 235, 1500).round().to(torch.uint8).expand(3, 1000, 1500),)
    config = dataclasses.replace(RELIEF, extent=(15.0, 16.0), relief_motion=(0.7, 0.8), max_subsamples=1)
    for index in range(3, 9):
        drawn, falls = plan(ramp, 3, index, 5, 96, config), []
        for relief in (drawn.relief, None):
            sharp = render(dataclasses.replace(drawn, relief=relief), ramp, 96, "cpu")[1]
            slope = sharp[..., 8:] - sharp[..., :-8]
            falls.append((slope * slope.mean().sign() < 0).float().mean())
        assert falls[0] < falls[1] + 0.003


def test_parallax_has_the_asked_length_and_folds_no_bump():
    for index in range(20):
        parallax = motion.Parallax(np.random.default_rng(index), 5.0, 0.8, 6, index % 5, 16.0)
        assert parallax.lengths.mean() == pytest.approx(5.0) and np.abs(parallax.truth).max() <= 16.0 / 12
        middle = motion.exposure_times(6, 0.8, 1).ravel()
        assert np.allclose(np.concatenate([parallax.shifts(j, middle[j:j + 1]) for j in range(6)]), parallax.truth)
        assert max(np.abs(parallax.shifts(j, t)).max() for j, t in enumerate(motion.exposure_times(6, 0.8, 9))) <= parallax.reach
