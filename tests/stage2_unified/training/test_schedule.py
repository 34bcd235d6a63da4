"""Understand first, then generate: which losses count, which weights learn, and at what rate."""

import pytest
import torch

from medunifier.stage2_unified.model.experts import kind_of
from medunifier.stage2_unified.training.config import (
    BackboneConfig,
    DataConfig,
    DecoderOptimConfig,
    ScheduleConfig,
    Stage2Config,
)
from tests.stage2_unified.conftest import make_batch, make_model
from tests.stage2_unified.training.test_balance import make_task

OPTIM = DecoderOptimConfig(lr=1e-2, warmup_steps=0, schedule="constant", weight_decay=0.1)


def copied(task):
    """Return the weights as parts that read and parts that generate: the head has rows of both."""
    offset = task._model.vocabulary.offset
    reads, generates = {}, {}
    for name, parameter in task._model.named_parameters():
        if name == "lm_head.weight":
            reads[name], generates[name] = parameter[:offset].detach().clone(), parameter[offset:].detach().clone()
        else:
            (generates if kind_of(name) == "generated" else reads)[name] = parameter.detach().clone()
    return reads, generates


@pytest.mark.parametrize("option", ["feed_forward", "all"])
def test_a_frozen_reader_keeps_every_weight_while_the_generator_learns(option):
    task = make_task(make_model(experts=option), optim=OPTIM, schedule=ScheduleConfig(2, reader_rate=0.0))
    before = copied(task)
    for step in range(2):
        figures = task.step([make_batch(seed=step)], step)
        counted = sum(figures[name] for name in ("contrast", "matching", "report")) + 1e-4 * figures["z"]
        assert figures["loss"].item() == pytest.approx(counted.item(), rel=1e-6)
    understood = copied(task)
    assert not any(torch.equal(value, before[0][name]) for name, value in understood[0].items() if value.dim() > 1)
    for step in range(2, 5):
        figures = task.step([make_batch(seed=step)], step)
        assert figures["loss"].item() == pytest.approx((figures["image"] + 1e-4 * figures["z"]).item(), rel=1e-6)
    reads, generates = copied(task)
    assert all(torch.equal(value, understood[0][name]) for name, value in reads.items())
    for name, value in generates.items():
        experts = understood[0] if ".generated." in name else understood[1]
        started = experts[name.replace(".generated.", ".read.")]
        change = (value - started).abs().max().item()
        # Three steps away from the expert of images that are read: a copy, not the unused weights of the beginning.
        assert 0 < change < 0.2, name


def test_a_slower_reader_moves_by_the_fraction_and_the_generator_as_before():
    moves = []
    for rate in (1.0, 0.25):
        task = make_task(make_model(experts="all"), optim=OPTIM, schedule=ScheduleConfig(0, rate))
        before = copied(task)
        task.step([make_batch()], 0)
        moves.append([{name: value - old[name] for name, value in new.items()}
                      for new, old in zip(copied(task), before, strict=True)])  # fmt: skip
    (reads, generates), (slower, as_before) = moves
    for name, move in reads.items():
        unused = "layers.1.experts.read" in name  # no loss reads the last states of images that are read
        assert (move.abs().max() > 0 or unused) and torch.allclose(slower[name], 0.25 * move, rtol=1e-3, atol=1e-6), (
            name
        )
    for name, move in generates.items():
        assert torch.equal(as_before[name], move), name


def test_without_experts_the_image_loss_alone_begins_later():
    task = make_task(make_model(), optim=OPTIM, schedule=ScheduleConfig(1))
    first, second = (task.step([make_batch()], step) for step in range(2))
    for figures, names in (
        (first, ("contrast", "matching", "report")),
        (second, ("contrast", "matching", "report", "image")),
    ):
        counted = sum(figures[name] for name in names) + 1e-4 * figures["z"]
        assert figures["loss"].item() == pytest.approx(counted.item(), rel=1e-6)


def test_a_schedule_that_cannot_be_followed_is_refused():
    with pytest.raises(ValueError, match="experts"):
        Stage2Config(DataConfig("codes"), "tokenizer", "run", schedule=ScheduleConfig(0, 0.5))
    experts = BackboneConfig(experts="all")
    Stage2Config(DataConfig("codes"), "tokenizer", "run", model=experts, schedule=ScheduleConfig(0, 0.5))
    for values in ({"generate_from": -1}, {"reader_rate": 1.5}):
        with pytest.raises(ValueError, match="schedule"):
            ScheduleConfig(**values)
