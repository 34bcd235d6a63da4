"""The adversarial side of the loss: hinge, ramp and taming's adaptive weight."""

import torch
from torch import Tensor
from torch.nn.functional import relu

from stage1_tokenizer.config import DiscriminatorConfig

MAX_ADAPTIVE_WEIGHT = 1e4


def hinge_discriminator_loss(real: Tensor, generated: Tensor) -> Tensor:
    """Scalar from two sets of logits; 1 at chance (all logits 0), 0 when all lie beyond the margin."""
    return (relu(1 - real).mean() + relu(1 + generated).mean()) / 2


def hinge_generator_loss(generated: Tensor) -> Tensor:
    """Scalar: falls as the discriminator takes the generated for real."""
    return -generated.mean()


def adversarial_share(step: int, config: DiscriminatorConfig) -> float:
    """Share of the adversarial loss that reaches the generator at ``step``: 0 before ``start``, then a ramp to 1."""
    return min(1.0, max(0.0, (step - config.start + 1) / config.ramp))


def adaptive_weight(
    reconstruction: Tensor, reconstruction_gradient: Tensor, adversarial_gradient: Tensor, last_layer: Tensor
) -> Tensor:
    """Taming's lambda: the adversarial gradient is made as long as the others' at the last layer.

    clamp(|d rec / d last| / (|d gan / d last| + 1e-4), 0, 1e4). The two gradients are given with respect to the
    reconstruction and carried on from there, so that the perceptual net and the discriminator are
    differentiated once a step, not once for the weight and again for the update.

    Args:
        reconstruction: (B, C, H, W), the decoder's output with its graph.
        reconstruction_gradient, adversarial_gradient: the two losses' gradients with respect to it.
        last_layer: weight of the decoder's last convolution.

    Returns:
        Scalar without gradient.
    """
    norms = [
        torch.autograd.grad(reconstruction, last_layer, grad_outputs=gradient, retain_graph=True)[0].norm()
        for gradient in (reconstruction_gradient, adversarial_gradient)
    ]
    return (norms[0] / (norms[1] + 1e-4)).clamp(0.0, MAX_ADAPTIVE_WEIGHT).detach()
