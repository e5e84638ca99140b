"""The shaking camera of the demonstration."""
import pytest
import torch
from kornia.color import rgb_to_linear_rgb
from media_tools import pattern

from vdd_model.app import demo
from vdd_model.errors import UserError
from vdd_model.measure.motion import camera_shake, shaking
from vdd_model.media.video import probe


def light(frames: torch.Tensor) -> torch.Tensor:
    """Mean linear light (F, 3) of frames (F, H, W, 3)."""
    return rgb_to_linear_rgb(frames.movedim(-1, 1)).mean(dim=(2, 3))


def photo(size: int = 96) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    grid = 0.25 * (((x // 6) + (y // 6)) % 2).float()[..., None]
    return torch.from_numpy(pattern(3, size, size)) * 0.7 + grid


def test_the_blur_has_the_asked_length():
    """Mean distance that pixels travel during the exposures, over many paths."""
    lengths = []
    for seed in range(12):
        times = (torch.arange(24, dtype=torch.float64)[:, None] + 0.5 + 0.8 * torch.linspace(-0.5, 0.5, 33).double()).reshape(-1)
        points = torch.tensor([[x, y, 1.0] for x in (-40.0, 0.0, 40.0) for y in (-40.0, 0.0, 40.0)], dtype=torch.float64)
        moved = shaking(10.0, seed, 120.0, 100, 100)(times) @ points.T
        moved = (moved[:, :2] / moved[:, 2:]).reshape(24, 33, 2, 9)
        lengths.append(float(moved.diff(dim=1).norm(dim=2).sum(1).mean()))
    assert 8 < sum(lengths) / len(lengths) < 12
    assert min(lengths) > 4 and max(lengths) < 22


def test_blurred_and_sharp_belong_together():
    blurred, sharp = camera_shake(photo(), 5, 6.0, seed=2, noise=0.0)
    assert blurred.shape == sharp.shape == (5, 96, 96, 3) and blurred.dtype == torch.float32
    assert 0 <= blurred.min() and blurred.max() <= 1
    detail = [(x[:, 1:] - x[:, :-1]).abs().mean() for x in (blurred, sharp)]
    assert detail[0] < 0.8 * detail[1]
    assert (light(blurred) - light(sharp)).abs().max() < 0.01          # blur moves light, it does not make any
    still, sharp_still = camera_shake(photo(), 2, 0.01, seed=2, noise=0.0)
    assert (still - sharp_still).abs().max() < 0.25 and (still - sharp_still).abs().mean() < 0.02


def test_a_seed_gives_one_clip():
    for seed in (1, 2**64 - 1):                                # the largest has one too
        first, again, other = (camera_shake(photo(32), 2, 3.0, seed=s)[0] for s in (seed, seed, 2))
        assert torch.equal(first, again) and not torch.equal(first, other)
    pytest.raises(UserError, camera_shake, torch.zeros(3, 32, 32), 2).match("height, width, 3")


def test_every_frame_is_reported_and_can_be_the_last():
    done = []

    def progress(frames: int) -> None:
        done.append(frames)
        if len(done) == 5:
            raise KeyboardInterrupt

    plain = camera_shake(photo(32), 3, 3.0, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(plain, camera_shake(photo(32), 3, 3.0, seed=1, progress=progress)))
    assert done == [1, 2, 3]
    pytest.raises(KeyboardInterrupt, camera_shake, photo(32), 9, 3.0, progress=progress)
    assert done == [1, 2, 3, 1, 2]


def test_demo(tmp_path, tiny_checkpoint, capfd):
    """All three steps, small, with the tiny random model: what it leaves, and that it prints the scores."""
    assert demo.main(["--out", str(tmp_path), "--checkpoint", str(tiny_checkpoint), "--frames", "3", "--size", "64", "--extent", "3"]) == 0
    text = capfd.readouterr().out
    assert "PSNR" in text and "deblurring changes PSNR by" in text
    for name in ("blurred.mp4", "truth.mp4", "deblurred.mp4", "panel.png", "error_map.png", "deblurred.mp4.preview.png",
                 "deblurred.mp4.preview.mp4"):
        assert (tmp_path / name).exists(), name
    assert probe(tmp_path / "deblurred.mp4").num_frames == 3
    assert demo.main(["--out", str(tmp_path), "--photo", str(tmp_path / "none.png")]) == 1
