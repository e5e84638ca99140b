"""Muon: what its steps are, and which parameters take them."""
import pytest
import torch
from conftest import make_tiny_model

from train.muon import Muon, is_matrix, orthogonalised


@pytest.mark.parametrize("shape", [(16, 16), (24, 80), (80, 24)])
def test_orthogonalised_keeps_the_singular_vectors_and_evens_out_the_values(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    found = u.T @ orthogonalised(matrix) @ v.T
    values = found.diagonal()
    assert (s.max() / s.min() > 1.3) and values.min() > 0.5 and values.max() < 1.3
    assert (found - values.diag()).abs().max() < 1e-3
    assert torch.allclose(orthogonalised(1e4 * matrix), orthogonalised(matrix), atol=1e-4)
    coarse = u.T @ orthogonalised(matrix, torch.bfloat16) @ v.T
    assert coarse.dtype == torch.float32 and coarse.diagonal().min() > 0.5 and coarse.diagonal().max() < 1.3
    assert (coarse - coarse.diagonal().diag()).abs().max() < 0.05


def test_a_matrix_moves_by_the_learning_rate_and_the_rest_as_with_adamw():
    torch.manual_seed(0)
    weight, bias = (torch.nn.Parameter(torch.randn(shape)) for shape in ((32, 8, 3, 3), (32,)))
    twin = torch.nn.Parameter(bias.detach().clone())
    optimizers = Muon([weight, bias], lr=1e-3, weight_decay=0.1), torch.optim.AdamW([twin], lr=1e-3, weight_decay=0.1)
    for _ in range(3):
        before = weight.detach().clone()
        gradient = torch.randn_like(bias)
        weight.grad, bias.grad, twin.grad = torch.randn_like(weight), gradient, gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
        moved = weight.detach() - before * (1 - 1e-4)
        assert 0.15e-3 < moved.square().mean().sqrt() < 0.25e-3          # 0.2 lr, as AdamW's steps are about
        assert torch.equal(bias, twin)


def test_which_parameters_are_matrices():
    model = make_tiny_model()
    chosen = {name for name, p in model.named_parameters() if is_matrix(p)}
    for name, p in model.named_parameters():
        if p.ndim == 1 or "depthwise" in name or name in ("null_text", "vae.fidelity.head.weight"):
            assert name not in chosen
    assert any(name.startswith("unet.") for name in chosen)
