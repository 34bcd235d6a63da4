"""The optimizer step: accumulation, clipping, schedule, and no update from losses that are not finite."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from medunifier.shared.errors import UserError
from medunifier.shared.training.config import OptimConfig
from medunifier.shared.training.optimizer_step import OptimizerStep

INPUTS = torch.arange(12.0).view(6, 2) / 10


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def prepared(parts=1, **config):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=parts)
    torch.manual_seed(0)
    network = torch.nn.Linear(2, 1)
    network, optimizer = accelerator.prepare(network, torch.optim.SGD(network.parameters(), lr=99.0))
    values = {"lr": 0.5, "warmup_steps": 0, "schedule": "constant", "max_grad_norm": 0.0}
    return OptimizerStep(accelerator, network, [optimizer], OptimConfig(**values | config), steps=10)


def run(update, step=0, factor=1.0):
    """One step; the weights after it, flat."""
    for inputs in INPUTS.chunk(update.accelerator.gradient_accumulation_steps):
        with update.accelerator.accumulate(update.network):
            loss = factor * update.network(inputs).square().mean()
            update(loss, {"square": loss}, step)
    return torch.cat([parameter.detach().flatten() for parameter in update.network.parameters()])


def test_micro_batches_update_once_with_the_mean_gradient():
    whole, accumulated = prepared(), prepared(parts=3)
    assert torch.allclose(run(whole), run(accumulated), atol=1e-6)
    assert torch.allclose(whole.gradient_norm, accumulated.gradient_norm, atol=1e-6)
    assert torch.allclose(run(whole), run(accumulated), atol=1e-6)  # gradients were reset


def test_the_gradient_is_clipped_and_its_norm_is_that_before():
    free, clipped = prepared(), prepared(max_grad_norm=0.1)
    start = torch.cat([parameter.detach().flatten() for parameter in free.network.parameters()])
    change, clipped_change = run(free) - start, run(clipped) - start
    assert free.gradient_norm == clipped.gradient_norm > 0.1
    assert change.norm().item() == pytest.approx(0.5 * free.gradient_norm.item(), rel=1e-5)
    assert clipped_change.norm().item() == pytest.approx(0.5 * 0.1, rel=1e-4)


def test_the_learning_rate_follows_the_schedule():
    update = prepared(warmup_steps=4)
    for step, rate in [(0, 0.125), (1, 0.25), (7, 0.5)]:
        run(update, step)
        assert update.optimizers[0].param_groups[0]["lr"] == update.figures(step)["lr"] == pytest.approx(rate)


def test_losses_that_are_not_finite_stop_before_the_update():
    update = prepared()
    before = [parameter.clone() for parameter in update.network.parameters()]
    with pytest.raises(UserError, match="step 3: square"):
        run(update, step=2, factor=float("inf"))
    for parameter, value in zip(update.network.parameters(), before, strict=True):
        assert torch.equal(parameter, value) and parameter.grad is None
