"""Losses balanced by gradient norm: what is measured, the factors that follow, and their place in a training step."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from medunifier.stage2_unified.objectives import balance, generation
from medunifier.stage2_unified.objectives.balance import BOUND, balancing_factors, shared_gradients, updated_norms
from medunifier.stage2_unified.training.build import make_optimizers
from medunifier.stage2_unified.training.config import (
    OBJECTIVES,
    BackboneConfig,
    DataConfig,
    DecoderOptimConfig,
    LossWeights,
    ScheduleConfig,
    Stage2Config,
)
from medunifier.stage2_unified.training.four_objectives import FourObjectives
from medunifier.stage2_unified.training.task import UnifiedTask
from tests.stage2_unified.conftest import make_batch, make_model

BALANCED = DecoderOptimConfig(lr=1e-3, warmup_steps=0, balance="gradient_norm", balance_every=2)


def make_task(model, weights=None, optim=BALANCED, schedule=None):
    weights, schedule = weights or LossWeights(), schedule or ScheduleConfig()
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True)
    objectives, *optimizers = accelerator.prepare(FourObjectives(model, weights), *make_optimizers(model, optim))
    backbone = BackboneConfig(experts=model.config.experts)
    config = Stage2Config(
        DataConfig("codes"), "tokenizer", "run", model=backbone, weights=weights, optim=optim, schedule=schedule
    )
    processor = SimpleNamespace(vocabulary=model.vocabulary)
    return UnifiedTask(objectives, optimizers, accelerator, config, None, None, processor, None)


def test_the_measured_gradient_is_that_of_a_shared_identity_matrix():
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, 4), torch.randn(5, 4)]
    shared = torch.eye(4, requires_grad=True)
    states = [(x @ shared) for x in inputs]
    losses = [states[0].square().sum(), states[0].sin().sum() * states[1].exp().sum(), states[1].sum()]
    found = shared_gradients(losses, states)
    for loss, gradient in zip(losses, found, strict=True):
        assert torch.allclose(gradient, torch.autograd.grad(loss, shared, retain_graph=True)[0], rtol=1e-5)


def test_factors_bring_norms_into_proportion_to_the_weights_within_bounds():
    norms, weights = torch.tensor([0.5, 2.0, 8.0, 1.0]), torch.tensor([1.0, 1.0, 4.0, 0.0])
    factors = balancing_factors(norms, weights)
    scaled = weights * factors * norms
    assert torch.allclose(scaled[:3] / weights[:3], scaled[:1].expand(3))
    assert (weights * factors).sum().item() == pytest.approx(6.0) and factors[3] == 1
    far = balancing_factors(torch.tensor([1.0, 100.0, 1.0]), torch.tensor([1.0, 100.0, 1.0]))
    assert far.tolist() == pytest.approx([BOUND, 102 / 300, BOUND])
    far = balancing_factors(torch.tensor([1.0, 1.0, 100.0]), torch.ones(3))
    assert far[2].item() == pytest.approx(1 / BOUND)
    unknown = balancing_factors(torch.tensor([0.0, 1.0, 4.0]), torch.ones(3))
    assert unknown[0] == 1 and unknown[1] / unknown[2] == 4
    assert balancing_factors(torch.zeros(3), torch.ones(3)).tolist() == [1, 1, 1]


def test_the_running_norm_begins_with_the_first_one_and_skips_batches_without_gradient():
    first = updated_norms(torch.zeros(2), torch.tensor([3.0, 0.0])[:, None, None] * torch.ones(1, 1, 1))
    assert first.tolist() == [3.0, 0.0]
    second = updated_norms(first, torch.tensor([0.0, 2.0])[:, None, None])
    assert second.tolist() == [3.0, 2.0]
    third = updated_norms(second, torch.tensor([6.0, 2.0])[:, None, None])
    assert 3.0 < third[0] < 6.0 and third[1].item() == pytest.approx(2.0)


@pytest.mark.parametrize("chunk", [4096, 16])  # chunks compute their logits again in each backward pass
def test_a_step_weights_the_losses_by_the_norms_of_the_last_measurement(chunk, monkeypatch):
    monkeypatch.setattr(generation, "CHUNK", chunk)
    monkeypatch.setattr(balance, "BOUND", 1e3)
    weights, batch = LossWeights(report=4.0), make_batch(dropped=(1,))
    task = make_task(make_model(), weights)
    first, second, third = (task.step([batch], step) for step in range(3))
    given = torch.tensor([getattr(weights, name) for name in OBJECTIVES])
    assert [first[f"{name}.weight"].item() for name in OBJECTIVES] == given.tolist()
    measured = [second[f"{name}.weight"].item() for name in OBJECTIVES]
    assert measured != given.tolist() and measured == [third[f"{name}.weight"].item() for name in OBJECTIVES]
    total = sum(second[f"{name}.weight"] * second[name] for name in OBJECTIVES) + weights.z * second["z"]
    assert second["loss"].item() == pytest.approx(total.item(), rel=1e-6)

    # The step samples negatives by its number.
    losses = FourObjectives(make_model(), weights)(replace(batch, negative_seed=0), measure=True)
    norms = losses["gradients"].flatten(1).norm(dim=1)
    proportion = torch.tensor(measured) * norms / given
    assert torch.allclose(proportion, proportion[:1].expand(4), rtol=1e-4)


def test_a_balanced_scheduled_training_resumes_to_the_last_bit(tmp_path):
    schedule = ScheduleConfig(generate_from=2, reader_rate=0.5)
    batches = [make_batch(seed=seed) for seed in range(5)]
    whole = make_task(make_model(experts="feed_forward"), schedule=schedule)
    for step in range(3):
        whole.step([batches[step]], step)
    whole.accelerator.save_state(str(tmp_path))
    figures = [whole.step([batches[step]], step) for step in (3, 4)]
    resumed = make_task(make_model(experts="feed_forward"), schedule=schedule)
    resumed.accelerator.load_state(str(tmp_path))
    for step, expected in zip((3, 4), figures, strict=True):
        found = resumed.step([batches[step]], step)
        assert {n: float(v) for n, v in found.items()} == {n: float(v) for n, v in expected.items()}
    weights = resumed._model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in whole._model.state_dict().items())
