"""What a sample's frames show: photographs, repeated frames, hard cuts, still cameras, GoPro's averaging; each by its share."""
import dataclasses

import numpy as np
import pytest
import torch

from train.data.clips import PairClips
from train.data.readers import Found, Sequence
from train.synthesis import camera, motion
from train.synthesis.blur import synthesize
from train.synthesis.scene import BlurConfig, plan, shots

BLUR = BlurConfig(extent=(3.0, 6.0), near_sharp=0.0, max_subsamples=9)


@pytest.fixture(scope="module")
def photos() -> list[torch.Tensor]:
    """Two pictures of smooth noise."""
    g = torch.Generator().manual_seed(0)
    noise = torch.rand(2, 3, 30, 40, generator=g)
    return list((torch.nn.functional.interpolate(noise, (240, 320), mode="bicubic").clamp(0, 1) * 255).byte())


def runs(clip: torch.Tensor) -> list[int]:
    """Lengths of the runs of equal frames of (3, F, H, W)."""
    changes = [j for j in range(1, clip.shape[1]) if not torch.equal(clip[:, j], clip[:, j - 1])]
    return np.diff([0, *changes, clip.shape[1]]).tolist()


def test_a_single_exposure_fills_the_whole_sample_blurred_and_sharp(photos):
    blurred, sharp = synthesize(photos, 1, range(3), num_frames=4, size=32, config=dataclasses.replace(BLUR, single=1.0))
    for b, s in zip(blurred, sharp):
        assert runs(b) == runs(s) == [4] and not torch.equal(b, s)
    assert not torch.equal(sharp[0], sharp[1])


def test_repeated_frames_come_in_runs_of_the_asked_lengths_and_begin_anywhere_in_one(photos):
    config, seen, firsts = dataclasses.replace(BLUR, repeats=1.0), set(), set()
    for index in range(24):
        (shot,) = shots(2, index, 12, config)
        lengths = np.unique(shot.shown, return_counts=True)[1].tolist()
        length = max(lengths)
        assert set(lengths[1:-1]) <= {length} and shot.num_frames == len(lengths)
        seen.add(length)
        firsts.add((length, lengths[0]))
    assert seen == {2, 3, 5} and len(firsts) > 5
    blurred, sharp = synthesize(photos, 2, [0], num_frames=12, size=32, config=config)
    assert runs(blurred[0]) == runs(sharp[0]) == np.unique(shots(2, 0, 12, config)[0].shown, return_counts=True)[1].tolist()


def test_a_hard_cut_goes_on_with_another_scene_and_leaves_the_first_one_as_it_was(photos):
    """At a cut the sharp frames have nothing in common; in a scene they move by some pixels."""
    slow = dataclasses.replace(BLUR, extent=(0.5, 1.0), duty=(1.0, 1.0), layers=0.0)
    config, places = dataclasses.replace(slow, hard_cuts=1.0), set()
    for index in range(12):
        first, second = shots(3, index, 5, config)
        places.add(at := len(first.shown))
        cut = synthesize(photos, 3, [index], num_frames=5, size=32, config=config)[1][0]
        alone = synthesize(photos, 3, [index], num_frames=at, size=32, config=slow)[1][0]
        assert torch.equal(cut[:, :at], alone) and len(second.shown) == 5 - at
        flat = (cut - cut.mean((-1, -2), keepdim=True)).movedim(1, 0).flatten(1)
        alike = [float(torch.cosine_similarity(flat[j - 1], flat[j], dim=0)) for j in range(1, 5)]
        assert alike[at - 1] == min(alike)
    assert places == {1, 2, 3, 4}
    assert all(len(shots(3, index, 1, config)) == 1 for index in range(8))


def test_before_a_still_camera_only_things_move(photos):
    for index in range(12):
        drawn = plan(photos, 4, index, 3, 64, dataclasses.replace(BLUR, still=1.0, layers=0.0))
        matrices = np.concatenate([drawn.background.truth, *drawn.background.frames])
        assert np.allclose(matrices, matrices[0]) and drawn.relief is None and drawn.layers
        for layer in drawn.layers:
            moved = motion.apply(np.linalg.inv(layer.truth[0]) @ layer.truth, np.array([[32.0, 32.0]]))[:, 0]
            assert np.linalg.norm(moved[-1] - moved[0]) > 0.1


def test_like_gopro_means_the_plain_srgb_average_of_whole_intervals(photos):
    """No noise, no codec, no linear light."""
    noisy = dataclasses.replace(BLUR, linear=1.0, noise=1.0, codec=1.0, saturation=1.0, duty=(0.3, 0.4))
    for index in range(4):
        drawn = plan(photos, 5, index, 2, 48, dataclasses.replace(noisy, gopro=1.0))
        assert (drawn.duty, drawn.linear, drawn.highlight, drawn.camera) == (1.0, False, 0.0, camera.CLEAN)
    still = [torch.full((3, 200, 200), 90, dtype=torch.uint8)]
    spread = [synthesize(still, 5, range(4), num_frames=2, size=32, config=dataclasses.replace(noisy, gopro=g, layers=0.0))[0].std((3, 4))
              for g in (1.0, 0.0)]
    assert spread[0].max() == 0 and spread[1].mean() > 0.001


@pytest.mark.parametrize("share", ["single", "repeats", "hard_cuts", "still", "gopro"])
def test_shares_hold_and_the_other_samples_stay_as_they_are(photos, share):
    """Numbers of their own: a sample that is not chosen is the same, bit for bit, as without the option."""
    config = dataclasses.replace(BLUR, **{share: 0.4})
    plain, mixed = (synthesize(photos, 6, range(40), num_frames=3, size=16, config=c)[0] for c in (BLUR, config))
    changed = sum(not torch.equal(a, b) for a, b in zip(plain, mixed))
    assert 8 <= changed <= 24
    again = synthesize(photos, 6, [17], num_frames=3, size=16, config=config)[0][0]
    assert torch.equal(again, mixed[17])


def test_blur_of_sixty_pixels_fits_a_crop_of_256(photos):
    """In exposures of one frame interval each, behind one another: measured between the exposures' ends."""
    config = BlurConfig(extent=(59.0, 60.0), near_sharp=0.0, layers=0.0, relief=0.0, max_subsamples=241)
    found = []
    for index in range(12):
        drawn = plan(photos, 7, index, 3, 256, config)
        for truth, matrices in zip(drawn.background.truth, drawn.background.frames):
            points = motion.apply(np.linalg.inv(truth) @ matrices, motion.grid_points(256))
            found.append(np.linalg.norm(np.diff(points, axis=0), axis=-1).sum(0).mean())
    assert 45 < np.mean(found) < 66 and max(found) < 110


class Numbered:
    """Frames that show their number."""

    name, size = "numbered", (16, 16)

    def __init__(self, base: int) -> None:
        self.base = base

    def __len__(self) -> int:
        return 40

    def read(self, numbers, box=None):
        return torch.stack([torch.full((3, 8, 8), self.base + n, dtype=torch.uint8) for n in numbers])


def test_recorded_pairs_know_photographs_repeats_and_cuts_too():
    found = Found("pairs", [Sequence("a", Numbered(100), Numbered(0))], [])

    def levels(**shares) -> list[list[int]]:
        clips = PairClips(found, BlurConfig(**shares)).batch(0, range(30), num_frames=6, size=8, device="cpu")
        assert torch.allclose(clips.sharp * 255 - clips.blurred * 255, torch.tensor(100.0))
        return (clips.blurred[:, 0, :, 0, 0] * 255).round().int().tolist()

    assert all(len(set(row)) == 1 for row in levels(single=1.0))
    assert all(1 < len(set(row)) <= 4 for row in levels(repeats=1.0))
    cut = [np.abs(np.diff(row)) for row in levels(hard_cuts=1.0)]
    assert all((steps != 1).sum() <= 1 for steps in cut) and sum((steps > 1).any() for steps in cut) > 20
