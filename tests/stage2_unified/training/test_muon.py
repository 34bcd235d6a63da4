"""Muon: the iteration orthogonalises, updates agree with torch's, and each parameter has one optimizer."""

from copy import deepcopy

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode

from medunifier.shared.errors import UserError
from medunifier.stage2_unified.training import muon
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
    matrix = torch.randn(1, 8, 20)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    cosine = torch.nn.functional.cosine_similarity(orthogonalise(matrix).flatten(), (u @ vh).flatten(), dim=0)
    assert cosine > 0.97


def test_a_matrix_of_zeros_stays_zero():
    assert torch.equal(orthogonalise(torch.zeros(1, 4, 6)), torch.zeros(1, 4, 6))


SHAPES = [(24, 24), (16, 40), (40, 16)]
SETTINGS = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}


def make_parameters(count=3):
    """`count` matrices of each shape; as in a decoder, one of a shape does not follow the other."""
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape)) for _ in range(count) for shape in SHAPES]


def train(parameters, optimizer, steps, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return [parameter.detach().clone() for parameter in parameters]


def reference(weight, gradients, lr, momentum, weight_decay):
    """One matrix, in float64, as the papers write it: the iteration is a polynomial of the singular values."""
    weight, mean = weight.double(), torch.zeros_like(weight, dtype=torch.float64)
    for gradient in gradients:
        mean = momentum * mean + (1 - momentum) * gradient.double()
        direction = (1 - momentum) * gradient.double() + momentum * mean
        u, values, vh = torch.linalg.svd(direction, full_matrices=False)
        values = values / values.norm()
        for _ in range(5):
            values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
        weight = (1 - lr * weight_decay) * weight - lr * 0.2 * max(weight.shape) ** 0.5 * (u * values) @ vh
    return weight


def test_a_step_equals_a_reference_in_float64_matrix_by_matrix():
    parameters = make_parameters()
    starts = [parameter.detach().clone() for parameter in parameters]
    generator = torch.Generator().manual_seed(1)
    gradients = [[torch.randn(p.shape, generator=generator) for p in parameters] for _ in range(3)]
    trained = train(parameters, Muon(parameters, **SETTINGS), 3)
    for start, own, value in zip(starts, zip(*gradients, strict=True), trained, strict=True):
        torch.testing.assert_close(value.double(), reference(start, own, **SETTINGS), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_agrees_with_torch(monkeypatch, dtype):
    """torch's Muon iterates in bfloat16, as this one does on a GPU: about 50 products are rounded to 8 bits."""
    monkeypatch.setitem(muon._ITERATION_DTYPE, "cpu", dtype)
    ours, theirs, start = make_parameters(), make_parameters(), make_parameters()
    train(ours, Muon(ours, **SETTINGS), 4)
    train(theirs, torch.optim.Muon(theirs, **SETTINGS, adjust_lr_fn="match_rms_adamw"), 4)
    for our, their, before in zip(ours, theirs, start, strict=True):
        assert our.dtype == torch.float32
        assert (our - their).norm() < 0.03 * (their - before).norm()


def test_a_gpu_iterates_in_bfloat16_with_weights_in_float32(monkeypatch):
    seen = []
    monkeypatch.setitem(muon._ITERATION_DTYPE, "cpu", muon._ITERATION_DTYPE["cuda"])
    monkeypatch.setattr(muon, "orthogonalise", lambda matrices: seen.append(matrices.dtype) or matrices)
    parameters = make_parameters(1)
    train(parameters, Muon(parameters), 1)
    assert set(seen) == {torch.bfloat16} and {p.dtype for p in parameters} == {torch.float32}


def test_groups_have_their_own_settings():
    """Matrices of one shape in two groups, and one without a gradient, are not mixed up."""
    parameters, alone = make_parameters(2), make_parameters(2)
    slow = {**SETTINGS, "lr": 0.001}
    optimizer = Muon([{"params": parameters[:2]}, {"params": parameters[2:], "lr": 0.001}], **SETTINGS)
    expected = [train([p], Muon([p], **(SETTINGS if n < 2 else slow)), 1, seed=n)[0] for n, p in enumerate(alone)]
    for n, parameter in enumerate(parameters):
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(n))
    parameters[3].grad = None
    optimizer.step()
    expected[3] = parameters[3].detach()
    assert parameters[3] not in optimizer.state
    for parameter, value in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.detach(), value, rtol=0, atol=1e-6)


def test_a_loaded_state_continues_to_the_last_bit():
    parameters = make_parameters()
    optimizer = Muon(parameters, **SETTINGS)
    middle, state = train(parameters, optimizer, 2), deepcopy(optimizer.state_dict())
    assert {name for entry in state["state"].values() for name in entry} == {"momentum"}  # older checkpoints' layout
    expected = train(parameters, optimizer, 2, seed=2)
    resumed = [torch.nn.Parameter(value) for value in middle]
    optimizer = Muon(resumed, lr=1.0)
    optimizer.load_state_dict(state)
    assert all(map(torch.equal, train(resumed, optimizer, 2, seed=2), expected))


class _Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.names.append(operation.name())
        return operation(*args, **(kwargs or {}))


def operations_of_a_step(count):
    parameters = make_parameters(count)
    optimizer = Muon(parameters, **SETTINGS)
    train(parameters, optimizer, 1)
    with _Operations() as operations:
        optimizer.step()
    return operations.names


def test_a_step_reads_nothing_back_and_does_not_grow_with_the_number_of_layers():
    few, many = operations_of_a_step(2), operations_of_a_step(7)
    assert not [name for name in many if "_local_scalar_dense" in name or "nonzero" in name]
    assert len(few) == len(many) and sum("bmm" in name for name in many) == 3 * 5 * len(SHAPES)


def test_an_update_has_the_size_of_adamw():
    torch.manual_seed(0)
    matrix = torch.nn.Parameter(torch.zeros(32, 96))
    matrix.grad = torch.randn(32, 96) * 1e4  # the update must not depend on the gradient's size
    Muon([matrix], lr=0.1).step()
    assert float(matrix.detach().square().mean().sqrt()) == pytest.approx(0.1 * 0.2, rel=0.25)


def test_parameters_other_than_matrices_are_refused():
    with pytest.raises(ValueError, match="matrices"):
        Muon([torch.nn.Parameter(torch.zeros(3))])


def test_sharded_matrices_are_refused_before_the_first_step():
    """An update from a part of a matrix would be wrong without an error."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        sharded = distribute_tensor(torch.zeros(4, 6), init_device_mesh("cpu", (1,)), [Shard(0)])
        with pytest.raises(UserError, match="adamw"):
            Muon([torch.nn.Parameter(sharded)])
    finally:
        torch.distributed.destroy_process_group()


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
    optimizer = make_optimizers(model, DecoderOptimConfig())[1]
    held = {names[id(p)] for group in optimizer.param_groups for p in group["params"]}
    assert len(held) == 2 * 7  # q, k, v, o, gate, up, down
    assert all(name.startswith("model.layers.") and name.endswith("proj.weight") for name in held)
