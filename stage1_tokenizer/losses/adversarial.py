"""The adversarial side of the loss: hinge, ramp and taming's adaptive weight."""

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from medunifier.shared.training.distributed import all_reduce_sum, world_size
from medunifier.stage1_tokenizer.config import DiscriminatorConfig

MAX_ADAPTIVE_WEIGHT = 1e4


def hinge_discriminator_loss(real: Tensor, generated: Tensor) -> Tensor:
    """Scalar from two sets of logits; 1 at chance (all logits 0), 0 when all lie beyond the margin."""
    return (relu(1 - real).mean() + relu(1 + generated).mean()) / 2


def hinge_generator_loss(generated: Tensor) -> Tensor:
    """Scalar: falls as the discriminator takes the generated for real."""
    return -generated.mean()


def adversarial_ramp(step: int, config: DiscriminatorConfig) -> float:
    """Share of the adversarial loss that reaches the generator at ``step``: 0 before ``start``, then a ramp to 1."""
    return min(1.0, max(0.0, (step - config.start + 1) / config.ramp))


def adaptive_weight(
    reconstruction: Tensor, reconstruction_gradient: Tensor, adversarial_gradient: Tensor, last_layer: Tensor
) -> Tensor:
    """Taming's lambda: the adversarial gradient is made as long as the others' at the last layer.

    clamp(|d rec / d last| / (|d gan / d last| + 1e-4), 0, 1e4). The two gradients are given with respect to the
    reconstruction and carried on from there, so that the perceptual net and the discriminator are
    differentiated once a step, not once for the weight and again for the update. The norms are of the gradients'
    means over all processes, so every process has the weight that one process with the whole batch would have.

    Args:
        reconstruction: (B, C, H, W), the decoder's output with its graph.
        reconstruction_gradient, adversarial_gradient: the two losses' gradients with respect to it.
        last_layer: weight of the decoder's last convolution.

    Returns:
        Scalar without gradient.
    """
    at_last_layer = [
        torch.autograd.grad(reconstruction, last_layer, grad_outputs=gradient, retain_graph=True)[0]
        for gradient in (reconstruction_gradient, adversarial_gradient)
    ]
    norms = [(all_reduce_sum(gradient) / world_size()).norm() for gradient in at_last_layer]
    return (norms[0] / (norms[1] + 1e-4)).clamp(0.0, MAX_ADAPTIVE_WEIGHT).detach()


class LeCam(nn.Module):
    """Regularisation of a discriminator that has few images (LeCAM: Tseng et al., 2021).

    Real logits are kept from rising far above what generated ones lately had, and generated ones from falling far
    below the real. "Lately" is a moving average of the two means, in buffers, so that a resumed run has it too.

    Args:
        decay: a step.
    """

    real: Tensor
    generated: Tensor

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("generated", torch.zeros(()))
        self._sums: Tensor | None = None  # of the step under way: real, generated, micro-batches

    def forward(self, real: Tensor, generated: Tensor) -> Tensor:
        """Scalar from two sets of logits; 0 while neither is beyond the other's average. Notes their means."""
        means = torch.stack([real.detach().mean(), generated.detach().mean(), real.new_ones(())])
        self._sums = means if self._sums is None else self._sums + means
        return relu(real - self.generated).square().mean() + relu(self.real - generated).square().mean()

    @torch.no_grad()
    def end_step(self) -> None:
        """Follow the means over all micro-batches and processes; called once after every optimizer step."""
        if self._sums is None:
            return
        sums = all_reduce_sum(self._sums)
        self._sums = None
        self.real.lerp_(sums[0] / sums[2], 1 - self.decay)
        self.generated.lerp_(sums[1] / sums[2], 1 - self.decay)
