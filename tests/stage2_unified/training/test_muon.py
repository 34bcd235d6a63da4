"""Muon: the iteration orthogonalises, updates agree with torch's, and each parameter has one optimizer."""

import pytest
import torch

from medunifier.stage2_unified.training.build import make_optimizers
from medunifier.stage2_unified.training.config import DecoderOptimConfig
from medunifier.stage2_unified.training.muon import Muon, orthogonalise
from tests.stage2_unified.conftest import make_model


@pytest.mark.parametrize("shape", [(16, 16), (12, 40), (40, 12)])
def test_singular_values_become_about_one(shape):
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert values.min() > 0.3 and values.max() < 1.3
    assert torch.linalg.svdvals(matrices).max() > 100  # far from one before


def test_singular_vectors_are_kept():
    """The result is close to U V' for a matrix U S V'."""
    torch.manual_seed(0)
    matrix = torch.randn(8, 20)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    cosine = torch.nn.functional.cosine_similarity(orthogonalise(matrix).flatten(), (u @ vh).flatten(), dim=0)
    assert cosine > 0.97


def test_a_matrix_of_zeros_stays_zero():
    assert torch.equal(orthogonalise(torch.zeros(4, 6)), torch.zeros(4, 6))


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])
def test_agrees_with_torch(shape):
    """torch's Muon computes in bfloat16, so about 50 products are rounded to 8 bits."""
    torch.manual_seed(0)
    start = torch.randn(shape)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    optimizers = [
        Muon([ours], lr=0.02, momentum=0.9, weight_decay=0.1),
        torch.optim.Muon([theirs], lr=0.02, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    ]
    for _ in range(4):
        gradient = torch.randn(shape)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.03 * moved


def test_an_update_has_the_size_of_adamw():
    torch.manual_seed(0)
    matrix = torch.nn.Parameter(torch.zeros(32, 96))
    matrix.grad = torch.randn(32, 96) * 1e4  # the update must not depend on the gradient's size
    Muon([matrix], lr=0.1).step()
    assert float(matrix.detach().square().mean().sqrt()) == pytest.approx(0.1 * 0.2, rel=0.25)


def test_parameters_other_than_matrices_are_refused():
    with pytest.raises(ValueError, match="matrices"):
        Muon([torch.nn.Parameter(torch.zeros(3))])


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_every_parameter_has_one_optimizer(kind):
    model = make_model()
    optimizers = make_optimizers(model, DecoderOptimConfig(kind=kind))
    held = [id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    assert len(optimizers) == (2 if kind == "muon" else 1)


def test_muon_has_only_the_matrices_of_the_layers():
    model = make_model()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    muon = make_optimizers(model, DecoderOptimConfig())[1]
    held = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    assert len(held) == 2 * 7  # q, k, v, o, gate, up, down
    assert all(name.startswith("model.layers.") and name.endswith("proj.weight") for name in held)
