"""Losses against literal, slow transcriptions of their formulas."""
import math
from itertools import pairwise

import torch

from train import losses


def pair(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=g), torch.randn(shape, generator=g)


def test_v_and_coherence_follow_the_paper_term_by_term():
    """Paper eq. 3: ||v - v_hat||^2; eq. 4: sum_j ||(v_{j+1} - v_j) - (v_hat_{j+1} - v_hat_j)||^2; both over the number of elements."""
    v_hat, v = pair(2, 3, 4, 5, 6)
    frames = list(zip(v.double().unbind(2), v_hat.double().unbind(2)))
    eq3 = sum(torch.linalg.norm(a - b) ** 2 for a, b in frames)
    eq4 = sum(torch.linalg.norm((a1 - a0) - (b1 - b0)) ** 2 for (a0, b0), (a1, b1) in pairwise(frames))
    total = losses.v_loss(v_hat, v) + 0.1 * losses.coherence_loss(v_hat, v)
    assert abs(total.item() - (eq3 + 0.1 * eq4) / v.numel()) < 1e-6


def test_a_constant_error_is_coherent_and_a_single_frame_has_no_coherence():
    v, _ = pair(1, 2, 3, 4, 4)
    assert losses.coherence_loss(v + 1, v).item() < 1e-12
    assert losses.coherence_loss(v[:, :, :1] * 2, v[:, :, :1]).item() == 0
    assert losses.frame_difference_loss(v[:, :, :1] * 2, v[:, :, :1]).item() == 0


def test_kl_of_a_gaussian():
    mean, logvar = torch.tensor([0.0, 2.0]), torch.tensor([0.0, math.log(0.25)])
    expected = (0.0 + 0.5 * (4 + 0.25 - 1 - math.log(0.25))) / 2
    assert abs(losses.kl_loss(mean, logvar).item() - expected) < 1e-6


def test_pixel_losses_of_known_errors():
    a, b = pair(1, 3, 2, 8, 8)
    assert abs(losses.charbonnier(a, b).item() - ((a - b) ** 2 + 1e-6).sqrt().mean().item() + 1e-3) < 1e-6
    assert losses.gradient_loss(a + 5, a).item() < 1e-5
    ramp = torch.arange(8.0).expand(1, 3, 2, 8, 8)
    assert abs(losses.gradient_loss(a + 2 * ramp, a).item() - 2) < 1e-5
    mse = (a - b).square().mean(dim=(1, 3, 4))
    assert abs(losses.psnr_loss(a, b) - (mse + 1e-3).log().mean()) < 1e-6
    spectrum = torch.fft.rfft2((a - b).double(), norm="ortho")
    assert abs(losses.fft_loss(a, b).item() - 0.5 * (spectrum.real.abs() + spectrum.imag.abs()).mean().item()) < 1e-6
    slow = (a[:, :, 1] - a[:, :, 0] - b[:, :, 1] + b[:, :, 0]).abs().mean()
    assert abs(losses.frame_difference_loss(a, b) - slow) < 1e-6


def test_gaussian_nll_is_least_at_the_errors_own_size():
    mean, error = pair(1, 4, 2, 16, 16)
    x, sizes = mean + 0.3 * error, [math.log(0.3) + shift for shift in (-0.3, 0.0, 0.3)]
    found = [losses.gaussian_nll(mean, torch.full_like(mean, size), x).item() for size in sizes]
    assert found[1] < min(found[0], found[2])
    exact = -torch.distributions.Normal(mean, 0.3).log_prob(x).mean().item() - 0.5 * math.log(2 * math.pi)
    assert abs(found[1] - exact) < 1e-5


def test_texture_loss_asks_how_much_detail_there_is_not_where():
    """Another draw of the same noise is all right, smoothness, a stronger one and a grid of the same energy are not; one value a clip."""
    a, b = (0.2 * x for x in pair(2, 3, 2, 64, 64))
    assert losses.texture_loss(a, a).abs().max() == 0
    assert losses.texture_loss(a, a + 0.3).max() < 1e-6
    same, smooth, strong = (losses.texture_loss(a, other) for other in (b, 0 * b, 2 * b))
    assert same.shape == (2,)
    assert (same < 0.2 * smooth).all() and (same < 0.2 * strong).all()
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    grid = (a.diff(dim=-1).std() / 2 * (1 - 2 * ((x + y) % 2))).expand_as(a)
    assert abs(grid.diff(dim=-1).std() / a.diff(dim=-1).std() - 1) < 0.01 and (losses.texture_loss(a, grid) > 3 * same).all()
    assert losses.texture_loss(a[..., :6, :5], b[..., :6, :5]).isfinite().all()
