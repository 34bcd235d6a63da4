"""Splitting a step over processes and micro-batches does not change losses, gradients or sampled negatives."""

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

from medunifier.stage2_unified.model.sequences import ImageSpans
from medunifier.stage2_unified.training.collator import StudyBatch
from medunifier.stage2_unified.training.config import (
    OBJECTIVES,
    DataConfig,
    DecoderOptimConfig,
    LossWeights,
    Stage2Config,
)
from medunifier.stage2_unified.training.four_objectives import FourObjectives
from medunifier.stage2_unified.training.task import UnifiedTask
from tests.stage2_unified.conftest import make_batch, make_config, make_model
from tests.two_processes import two_processes


def part(batch: StudyBatch, number: int, parts: int) -> StudyBatch:
    """Return one of ``parts`` equal parts of a batch, padded to its longest report and most images."""
    size = len(batch) // parts
    studies = slice(number * size, (number + 1) * size)
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}
    result = StudyBatch(**{name: v[studies] if isinstance(v, Tensor) else v for name, v in values.items()})
    result.statements = batch.statements and batch.statements.each(lambda value: value[studies])
    result.report = result.report[:, : int(result.report_length.max())]
    spans = batch.images
    if spans.prior_view is None:
        result.images = ImageSpans(spans.codes[studies], spans.view[studies])
        return result
    pad = make_config().vocabulary["<pad>"]
    images, priors = (int((view[studies] != pad).sum(1).max()) for view in (spans.view, spans.prior_view))
    result.images = ImageSpans(
        spans.codes[studies, :images], spans.view[studies, :images],
        spans.prior_codes[studies, :priors], spans.prior_view[studies, :priors],
    )  # fmt: skip
    return result


def one_step(batches: list[StudyBatch]) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Return the figures of a training step over these micro-batches, and the weights after it."""
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=len(batches))
    model = make_model()
    objectives, optimizer = accelerator.prepare(
        FourObjectives(model, LossWeights()), torch.optim.SGD(model.parameters(), lr=1.0)
    )
    config = Stage2Config(
        DataConfig("codes"),
        "tokenizer",
        "run",
        optim=DecoderOptimConfig(lr=1.0, warmup_steps=0, max_grad_norm=0.0, balance="gradient_norm", balance_every=3),
    )
    processor = SimpleNamespace(vocabulary=model.vocabulary)
    task = UnifiedTask(objectives, [optimizer], accelerator, config, None, None, processor, None)
    figures = {name: float(value) for name, value in task.step(batches, step=3).items()}
    figures |= {f"norm.{name}": norm for name, norm in zip(OBJECTIVES, task._norms.tolist(), strict=True)}
    return figures, {name: parameter.detach() for name, parameter in model.named_parameters()}


def _worker(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    steps = []
    for batch in (whole_batch(), uneven_batch()):
        steps.append(one_step([part(batch, rank, 2)]))
        # The stream gives a micro-batch to every process before the next one begins.
        steps.append(one_step([part(batch, rank, 4), part(batch, 2 + rank, 4)]))
    torch.save(steps, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def whole_batch() -> StudyBatch:
    return make_batch(studies=8, dropped=(1, 6))


def uneven_batch() -> StudyBatch:
    """Return a batch whose first half has up to three images and priors; the second has one image and no prior.

    The studies have statements, and the last one has no report.
    """
    return make_batch(
        studies=8, dropped=(1, 6), images=[3, 1, 2, 2, 1, 1, 1, 1], priors=[0, 2, 1, 0, 0, 0, 0, 0], statements=2
    )


def check_same_step(figures, weights, expected_figures, expected_weights):
    norms = [f"norm.{name}" for name in OBJECTIVES]
    assert min(expected_figures[name] for name in norms) > 0
    statements = [name for name in expected_figures if name.startswith("statement")]
    for name in (*OBJECTIVES, *norms, *statements, "z", "loss", "gradient_norm"):
        assert figures[name] == pytest.approx(expected_figures[name], rel=1e-5), name
    before = dict(make_model().named_parameters())
    for name, weight in expected_weights.items():
        change = (weight - before[name]).abs().max()
        assert change > 0 and (weights[name] - weight).abs().max() <= 5e-5 * change, name


@pytest.mark.parametrize("studies", [whole_batch, uneven_batch])
def test_accumulation_with_gradient_caching_equals_the_large_batch_for_every_loss(studies):
    figures, weights = one_step([part(studies(), number, 4) for number in range(4)])
    check_same_step(figures, weights, *one_step([studies()]))


def test_two_processes_equal_one_with_and_without_accumulation(tmp_path):
    with two_processes(_worker, tmp_path):
        unsplit = [one_step([batch]) for batch in (whole_batch(), uneven_batch())]
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for number, ((first, weights), (second, other_weights)) in enumerate(zip(*ranks, strict=True)):
        means = {name: (first[name] + second[name]) / 2 for name in first}
        check_same_step(means, weights, *unsplit[number // 2])
        assert all(torch.equal(weights[name], other_weights[name]) for name in weights)
