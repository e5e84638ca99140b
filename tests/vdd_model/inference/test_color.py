"""Wavelet color transfer: what it moves, what it leaves alone."""
import pytest
import torch
import torch.nn.functional as F

from vdd_model.inference.color import levels_for, low_frequencies, wavelet_color_transfer_


def picture(height=70, width=91, seed=0):
    generator = torch.Generator().manual_seed(seed)
    smooth = F.interpolate(torch.rand(2, 3, 3, 3, generator=generator), size=(height, width), mode="bicubic", align_corners=False)
    return smooth + 0.1 * torch.rand(2, 3, height, width, generator=generator)


@pytest.mark.parametrize("size", [(70, 91), (1, 1), (1, 7), (2, 3), (5, 64), (33, 17)])
@pytest.mark.parametrize("shift, allowed", [(0.0, 1e-6), (0.2, 1e-5), (torch.tensor([0.1, -0.2, 0.05]).view(1, 3, 1, 1), 1e-5)])
def test_a_color_cast_is_removed_exactly_and_the_same_picture_stays_itself(size, shift, allowed):
    x = picture(*size)
    torch.testing.assert_close(wavelet_color_transfer_(x + shift, x), x, rtol=0, atol=allowed)


def test_slow_drift_is_mostly_removed():
    x = picture(256, 1280)
    drift = F.interpolate(torch.tensor([[[[0.0, 0.2]]]]), size=(256, 1280), mode="bilinear", align_corners=True)
    left = (wavelet_color_transfer_(x + drift, x) - x).abs()
    assert left[..., 256:-256].max() < 1e-3 and left.max() < 0.03


@pytest.mark.parametrize("levels", [8, 6])
def test_what_deblurring_changes_is_kept(levels):
    """A bright bar of 24 pixels, spread over 48 by a blur that averages light: restored, it stays as it is, and so does its surround."""
    x = torch.full((1, 1, 256, 256), 0.1)
    x[..., 116:140] = 1
    blurred = F.avg_pool2d(F.pad(x**2.2, (12, 12, 0, 0), mode="replicate"), (1, 25), stride=1) ** (1 / 2.2)
    assert (x - blurred).mean().abs() > 4 / 255                # it is no less bright than the blurred one: that would be the wrong aim
    torch.testing.assert_close(wavelet_color_transfer_(x.clone(), blurred, levels), x, rtol=0, atol=1 / 255)


@pytest.mark.parametrize("blur", [1, 9, 31])
def test_a_drift_is_repaired_beside_details_that_are_restored(blur):
    """A result that is right but for a cast of 8/255: the blurrier the input was, the less is known of what is right; most of it goes."""
    sharp = picture(240, 320)
    blurred = F.avg_pool2d(F.pad(sharp, (blur // 2, blur // 2, 0, 0), mode="reflect"), (1, blur), stride=1)
    cast = torch.tensor([8.0, -8.0, 8.0]).view(3, 1, 1) / 255
    repaired = wavelet_color_transfer_(sharp + cast, blurred)
    assert (repaired - sharp).abs().mean() < 0.15 * 8 / 255


def test_details_of_the_output_are_kept():
    """A fine checkerboard passes through although the reference has none."""
    x = picture(96, 96)
    board = 0.1 * ((torch.arange(96)[:, None] + torch.arange(96)) % 2 * 2 - 1)
    torch.testing.assert_close(wavelet_color_transfer_(x + board, x)[..., 8:-8, 8:-8], (x + board)[..., 8:-8, 8:-8], rtol=0, atol=2e-3)


def test_low_frequencies_are_those_of_the_plain_transform():
    """Against all eight levels at full size, written out."""
    x = picture(600, 680, 2) - picture(600, 680, 1)
    low = x
    for level in range(8):
        step = 2**level
        for axis in (2, 3):
            pad = (0, 0, step, step) if axis == 2 else (step, step, 0, 0)
            padded, n = F.pad(low, pad, mode="replicate"), low.shape[axis]
            low = 0.25 * padded.narrow(axis, 0, n) + 0.5 * low + 0.25 * padded.narrow(axis, 2 * step, n)
    error = (F.interpolate(low_frequencies(x), size=(600, 680), mode="bilinear", align_corners=False) - low).abs()
    assert error[..., 260:-260, 260:-260].max() < 0.005 and error.max() < 0.06
    assert [levels_for(tile) for tile in (0, 64, 128, 256, 384, 768, 2048)] == [8, 5, 5, 6, 7, 8, 8]       # a third of small tiles' size
