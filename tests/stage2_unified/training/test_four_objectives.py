"""The training step as a module: checkpoint names, bounds of the logit scale, and one loss for each objective."""

import math
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from medunifier.stage2_unified.objectives.chance import chance_levels
from medunifier.stage2_unified.training.config import (
    OBJECTIVES,
    STATEMENT_LOSSES,
    DataConfig,
    DecoderOptimConfig,
    LossWeights,
    Stage2Config,
)
from medunifier.stage2_unified.training.four_objectives import FourObjectives
from medunifier.stage2_unified.training.task import UnifiedTask
from tests.stage2_unified.conftest import losses_of, make_batch, make_model

LIMIT = math.log(100.0)


def make_task(model, lr):
    accelerator = Accelerator(cpu=True)
    objectives, optimizer = accelerator.prepare(
        FourObjectives(model, LossWeights()), torch.optim.SGD(model.parameters(), lr=lr)
    )
    optim = DecoderOptimConfig(lr=lr, warmup_steps=0, schedule="constant")
    config = Stage2Config(DataConfig("codes"), "tokenizer", "run", optim=optim)
    processor = SimpleNamespace(vocabulary=model.vocabulary)
    return UnifiedTask(objectives, [optimizer], accelerator, config, None, None, processor, None)


def test_a_logit_scale_above_its_bound_is_clamped_and_can_decrease_again(model, batch):
    with torch.no_grad():
        model.logit_scale.fill_(LIMIT + 1)
    losses_of(model, batch)["contrast"].backward()
    assert model.logit_scale.grad > 0  # an untrained model decreases such a scale
    model.zero_grad()
    task = make_task(model, lr=1e-3)
    assert task.step([batch], step=0)["logit_scale"].item() == pytest.approx(math.exp(LIMIT + 1), rel=1e-5)
    first = model.logit_scale.item()
    assert first <= LIMIT + 1e-6
    task.step([batch], step=1)
    assert model.logit_scale.item() < min(first, LIMIT - 1e-5)


def test_a_logit_scale_is_bounded_below_and_unchanged_between_the_bounds(model):
    for value, bounded in [(-0.5, 0.0), (0.3, 0.3), (4.6, 4.6), (4.7, LIMIT)]:
        with torch.no_grad():
            model.logit_scale.fill_(value)
        model.clamp_logit_scale()
        assert model.logit_scale.item() == pytest.approx(bounded, abs=1e-6)


def test_a_checkpoint_has_the_names_of_the_model_and_loads_into_another(model, tmp_path):
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(FourObjectives(model, LossWeights()))
    accelerator.save_state(str(tmp_path))
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == model.state_dict().keys()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    accelerator.load_state(str(tmp_path))
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    # Wrapped in another module, as by DistributedDataParallel.
    outer, other = (torch.nn.ModuleDict({"module": FourObjectives(m, LossWeights())}) for m in (model, make_model()))
    assert set(outer.state_dict()) == {f"module.{name}" for name in saved}
    other.load_state_dict(outer.state_dict())
    assert all(torch.equal(value, saved[name]) for name, value in other["module"].model.state_dict().items())


def test_every_weight_has_a_loss_and_counts_it_alone(model):
    losses, names = losses_of(model, make_batch(statements=2)), (*OBJECTIVES, *STATEMENT_LOSSES, "z")
    assert set(names) == set(LossWeights.__dataclass_fields__) <= losses.keys()
    assert chance_levels(8, 64, 16).keys() <= set(OBJECTIVES)
    for name in names:
        alone = losses_of(model, make_batch(statements=2), **{weight: float(weight == name) for weight in names})
        assert alone["loss"] == losses[name]
