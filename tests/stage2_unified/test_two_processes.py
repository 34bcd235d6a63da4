"""However a step is split over processes and micro-batches: losses, gradients and drawn negatives are the same."""

import os
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from stage2_unified.config import DataConfig, DecoderOptimConfig, Stage2Config
from stage2_unified.sequences import StudyBatch
from stage2_unified.task import UnifiedTask
from tests.stage2_unified.conftest import make_batch, make_model
from tests.two_processes import two_processes


def part(batch: StudyBatch, number: int, parts: int) -> StudyBatch:
    """Some of the rows, padded to their own longest report."""
    size = len(batch) // parts
    mine = slice(number * size, (number + 1) * size)
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}
    rows = StudyBatch(**{name: v[mine] if isinstance(v, Tensor) else v for name, v in values.items()})
    rows.report = rows.report[:, : int(rows.report_length.max())]
    return rows


def one_step(batches: list[StudyBatch]) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Figures of a training step over these micro-batches, and the weights after it."""
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=len(batches))
    plain = make_model()
    model, optimizer = accelerator.prepare(plain, torch.optim.SGD(plain.parameters(), lr=1.0))
    config = Stage2Config(
        DataConfig("codes"), "tokenizer", "run", optim=DecoderOptimConfig(lr=1.0, warmup_steps=0, clip=0.0)
    )
    processor = SimpleNamespace(vocabulary=plain.vocabulary)
    task = UnifiedTask(model, [optimizer], accelerator, config, None, None, processor, None)
    figures = {name: float(value) for name, value in task.step(batches, step=3).items()}
    return figures, {name: parameter.detach() for name, parameter in plain.named_parameters()}


def _worker(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    batch = whole_batch()
    halves = one_step([part(batch, rank, 2)])
    # The stream deals a micro-batch to every process before the next one begins.
    quarters = one_step([part(batch, rank, 4), part(batch, 2 + rank, 4)])
    torch.save((halves, quarters), folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def whole_batch() -> StudyBatch:
    return make_batch(rows=8, dropped=(1, 6))


def check_same_step(figures, weights, whole_figures, whole_weights):
    for name in ("contrast", "matching", "report", "image", "z", "loss", "gradient_norm"):
        assert figures[name] == pytest.approx(whole_figures[name], rel=1e-5), name
    before = dict(make_model().named_parameters())
    for name, weight in whole_weights.items():
        change = (weight - before[name]).abs().max()
        assert change > 0 and (weights[name] - weight).abs().max() <= 5e-5 * change, name


def test_accumulation_and_its_cached_gradients_equal_the_large_batch_for_every_loss():
    figures, weights = one_step([part(whole_batch(), number, 4) for number in range(4)])
    check_same_step(figures, weights, *one_step([whole_batch()]))


def test_two_processes_equal_one_and_so_do_two_of_two_micro_batches(tmp_path):
    with two_processes(_worker, tmp_path):
        whole = one_step([whole_batch()])
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for (first, weights), (second, same) in zip(*ranks, strict=True):
        check_same_step({name: (first[name] + second[name]) / 2 for name in first}, weights, *whole)
        assert all(torch.equal(weights[name], same[name]) for name in weights)
