"""The optimizer step: accumulation, clipping, schedule, and the stop after losses that are not finite."""

import pytest
import torch
from accelerate import Accelerator

from medunifier.shared.errors import UserError
from medunifier.shared.training.checkpoints import Checkpoints
from medunifier.shared.training.config import LoopConfig, OptimConfig
from medunifier.shared.training.loop import train
from medunifier.shared.training.optimizer_step import FiniteCheck, OptimizerStep
from medunifier.shared.training.run_folder import CHECKPOINTS, RunFolder, read_metrics
from tests.two_processes import two_processes

INPUTS = torch.arange(12.0).view(6, 2) / 10


@pytest.mark.parametrize("precision", ["bf16", "no"])
def test_every_test_has_an_accelerator_of_its_own(precision):
    torch.backends.cudnn.benchmark ^= True
    assert torch.backends.cudnn.benchmark
    assert Accelerator(cpu=True, mixed_precision=precision).mixed_precision == precision


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
            update(loss, step)
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


class Steps:
    """A task whose losses are a given list of numbers by step."""

    def __init__(self, **losses):
        self.losses, self.steps = losses, 0

    def step(self, micro_batches, step):
        self.steps += 1
        return {name: torch.tensor(values[step]) for name, values in self.losses.items()}

    def validate(self, step):
        return {}


def test_a_loss_that_is_not_finite_stops_the_run_at_the_next_log_line(tmp_path):
    nan, inf = float("nan"), float("inf")
    task = Steps(l1=[1.0] * 12, perceptual=[1.0, 1.0, 1.0, 1.0, inf, 1.0, *[nan] * 6], gan=[1.0] * 5 + [nan] * 7)
    config = LoopConfig(steps=12, log_every=4, checkpoint_every=4, validate_every=100)
    run = RunFolder(tmp_path, config)
    with pytest.raises(UserError, match="step 5: perceptual not") as error:
        train(task, Accelerator(cpu=True), run, lambda _: iter(lambda: None, 1), config)
    assert "l1" not in str(error.value) and "gan" not in str(error.value)
    assert task.steps == 8  # nothing is read from the device between two log lines
    assert [line["step"] for line in read_metrics(tmp_path)] == [4]
    assert Checkpoints(tmp_path / CHECKPOINTS).latest() == 4


def test_a_loss_of_another_process_stops_this_one(tmp_path):
    with two_processes(_other_process, tmp_path):
        pass
    assert all("step 2: b" in (tmp_path / f"{rank}.txt").read_text() for rank in range(2))


def _other_process(rank, port, folder):
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    check = FiniteCheck()
    for step in (1, 2):
        check.add({"a": torch.tensor(0.0), "b": torch.tensor(float("inf") if rank and step == 2 else 0.0)}, step)
    with pytest.raises(UserError) as error:
        check.check()
    (folder / f"{rank}.txt").write_text(str(error.value))
    torch.distributed.destroy_process_group()
