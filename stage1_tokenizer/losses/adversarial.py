"""Adversarial losses: hinge loss, ramp, taming's adaptive weight, and LeCAM regularization."""

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from medunifier.shared.training.distributed import all_reduce_sum, world_size
from medunifier.stage1_tokenizer.config import DiscriminatorConfig

MAX_ADAPTIVE_WEIGHT = 1e4


def hinge_discriminator_loss(real: Tensor, generated: Tensor) -> Tensor:
    """Return the scalar hinge loss: 1 at chance (all logits 0), 0 if all logits exceed the margin."""
    return (relu(1 - real).mean() + relu(1 + generated).mean()) / 2


def hinge_generator_loss(generated: Tensor) -> Tensor:
    """Return the scalar loss that decreases as the discriminator classifies generated images as real."""
    return -generated.mean()


def adversarial_ramp(step: int, config: DiscriminatorConfig) -> float:
    """Return the factor of the adversarial loss at ``step``: 0 before ``start``, then a linear ramp to 1."""
    return min(1.0, max(0.0, (step - config.start + 1) / config.ramp))


def adaptive_weight(
    reconstruction: Tensor, reconstruction_gradient: Tensor, adversarial_gradient: Tensor, last_layer: Tensor
) -> Tensor:
    """Return taming's lambda, which scales the adversarial gradient to the norm of the others at the last layer.

    clamp(|d rec / d last| / (|d gan / d last| + 1e-4), 0, 1e4). Both gradients are passed with respect to the
    reconstruction and propagated from there, so that the perceptual net and the discriminator are differentiated
    once per step, not once for the weight and again for the update. The norms are taken of the gradients' means over
    all processes, so every process computes the weight that one process with the global batch would compute.

    Args:
        reconstruction: (B, C, H, W), the decoder's output, attached to its graph.
        reconstruction_gradient, adversarial_gradient: (B, C, H, W), gradients of the two losses with respect to it.
        last_layer: weight of the decoder's output convolution.

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
    """LeCAM, a regularizer of the discriminator for small data sets (Tseng et al., 2021).

    Penalizes real logits above the moving average of the generated ones, and generated logits below that of the real
    ones. The two averages are buffers, so that a resumed run continues with them.

    Args:
        decay: decay of the averages per step.
    """

    real: Tensor
    generated: Tensor

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("generated", torch.zeros(()))
        self._sums: Tensor | None = None  # of the current step: real, generated, micro-batches

    def forward(self, real: Tensor, generated: Tensor) -> Tensor:
        """Return the scalar penalty, 0 if no logit is beyond the other average. Record the means for ``end_step``."""
        means = torch.stack([real.detach().mean(), generated.detach().mean(), real.new_ones(())])
        self._sums = means if self._sums is None else self._sums + means
        return relu(real - self.generated).square().mean() + relu(self.real - generated).square().mean()

    @torch.no_grad()
    def end_step(self) -> None:
        """Update the averages with the means of all micro-batches and processes. Call after every optimizer step."""
        if self._sums is None:
            return
        sums = all_reduce_sum(self._sums)
        self._sums = None
        self.real.lerp_(sums[0] / sums[2], 1 - self.decay)
        self.generated.lerp_(sums[1] / sums[2], 1 - self.decay)
