"""Adversarial losses: chance levels, schedule, adaptive weight, LeCAM."""

import pytest
import torch

from medunifier.stage1_tokenizer.config import DiscriminatorConfig
from medunifier.stage1_tokenizer.losses import adversarial as losses
from medunifier.stage1_tokenizer.losses.adversarial import (
    LeCam,
    adaptive_weight,
    adversarial_ramp,
    hinge_discriminator_loss,
    hinge_generator_loss,
)


def test_hinge_at_chance_and_beyond_the_margin():
    zero, far = torch.zeros(4, 1, 3, 3), torch.full((4, 1, 3, 3), 2.0)
    assert hinge_discriminator_loss(zero, zero) == 1
    assert hinge_discriminator_loss(far, -far) == 0
    assert hinge_generator_loss(far) < hinge_generator_loss(-far)


def test_adversarial_loss_starts_after_the_discriminator_and_ramps_up():
    config = DiscriminatorConfig(train_from=10, start=20, ramp=4)
    factors = [adversarial_ramp(step, config) for step in (0, 10, 19, 20, 21, 22, 23, 24, 1000)]
    assert factors == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    with pytest.raises(ValueError, match="loss.discriminator.start"):
        DiscriminatorConfig(train_from=20, start=20)


def test_adaptive_weight_is_tamings_ratio_of_gradients_at_the_last_layer():
    torch.manual_seed(0)
    last = torch.nn.Conv2d(3, 1, 3)
    target, critic = torch.rand(2, 1, 6, 6), torch.nn.Conv2d(1, 1, 3)
    reconstruction = last(torch.rand(2, 3, 8, 8))
    losses = (reconstruction - target).abs().mean(), 5 * critic(reconstruction).mean()
    at_last = [torch.autograd.grad(loss, last.weight, retain_graph=True)[0].norm() for loss in losses]
    at_reconstruction = [torch.autograd.grad(loss, reconstruction, retain_graph=True)[0] for loss in losses]
    weight = adaptive_weight(reconstruction, *at_reconstruction, last.weight)
    torch.testing.assert_close(weight, at_last[0] / (at_last[1] + 1e-4))
    assert not weight.requires_grad


def test_adaptive_weight_is_bounded_without_an_adversarial_gradient():
    last = torch.nn.Conv2d(1, 1, 1)
    reconstruction = last(torch.ones(1, 1, 4, 4))
    huge = torch.full_like(reconstruction, 1e6)
    assert adaptive_weight(reconstruction, huge, torch.zeros_like(huge), last.weight) == 1e4


def test_lecam_penalizes_only_logits_beyond_the_other_average():
    lecam = LeCam(decay=0.5)
    assert lecam(torch.full((4,), 2.0), torch.full((4,), -2.0)) == 4 + 4  # both averages start at 0
    lecam(torch.full((4,), 4.0), torch.full((4,), -4.0))  # a second micro-batch of the step
    assert lecam.real == 0  # the averages do not change within a step
    lecam.end_step()
    assert lecam.real == 1.5 and lecam.generated == -1.5
    assert lecam(torch.full((4,), -3.0), torch.full((4,), 3.0)) == 0
    assert lecam(torch.full((4,), 0.5), torch.full((4,), 3.0)) == 4
    lecam.eval()
    assert lecam.state_dict().keys() == {"real", "generated"}


def test_lecam_averages_the_means_of_all_processes(monkeypatch):
    lecam = LeCam(decay=0.5)
    lecam(torch.full((4,), 2.0), torch.full((4,), -1.0))
    other = torch.tensor([4.0, -3.0, 1.0])  # means and micro-batches of another process
    monkeypatch.setattr(losses, "all_reduce_sum", lambda sums: sums + other)
    lecam.end_step()
    assert (lecam.real, lecam.generated) == (1.5, -1.0)  # halfway to 3 and -2
