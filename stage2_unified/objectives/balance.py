"""Weights of the losses balanced by gradient norm: GradNorm (Chen et al., 2018) without its term for training rates.

A loss that moves shared weights more than another is weighted less. The norm is that of the gradient with respect to
a shared matrix after the last norm of the decoder, which all losses read. The matrix is the identity and exists in
this formula alone: its gradient, the sum of x^T dL/dx over hidden states x, needs no pass through the layers. Unlike
dL/dx itself it adds up over tokens, as the gradients of real weights do.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

BOUND = 10.0
"""Factors lie between 1 / BOUND and BOUND."""
DECAY = 0.7
"""Of the running geometric mean of the norms, per measurement."""


def shared_gradients(losses: Sequence[Tensor], states: Sequence[Tensor]) -> Tensor:
    """Return the (N, H, H) gradients of N scalar losses with respect to the shared matrix.

    Args:
        losses: of this micro-batch; their graphs are kept.
        states: (…, H) hidden states, all that the losses depend on, each after the last norm.
    """
    results = []
    for loss in losses:
        matrix = states[0].new_zeros(states[0].shape[-1], states[0].shape[-1], dtype=torch.float32)
        gradients = torch.autograd.grad(loss, states, retain_graph=True, allow_unused=True)
        for state, gradient in zip(states, gradients, strict=True):
            if gradient is not None:
                matrix = matrix + state.detach().flatten(0, -2).mT.float() @ gradient.flatten(0, -2).float()
        results.append(matrix)
    return torch.stack(results)


def updated_norms(norms: Tensor, gradients: Tensor) -> Tensor:
    """Return the running norms of N losses.

    Args:
        norms: (N,) so far; 0 = never measured.
        gradients: (N, H, H) of the whole step; of a norm of 0, as of a batch without pairs, nothing is learned.
    """
    found = gradients.flatten(1).norm(dim=1)
    mean = torch.where(norms > 0, norms**DECAY * found ** (1 - DECAY), found)
    return torch.where(found > 0, mean, norms)


def balancing_factors(norms: Tensor, weights: Tensor) -> Tensor:
    """Return factors on the weights, after which the gradient norms are in proportion to the weights.

    The sum of the weights stays, but for the bounds.

    Args:
        norms: (N,) of the unweighted losses; 0 = unknown, whose factor is 1.
        weights: (N,); a loss of weight 0 has no part in the balance.

    Returns:
        (N,), each in [1 / BOUND, BOUND].
    """
    part = torch.where(norms > 0, weights, 0.0)
    known = norms.clamp(min=torch.finfo(norms.dtype).tiny)
    scale = part.sum() / (part / known).sum().clamp(min=torch.finfo(norms.dtype).tiny)
    return torch.where(part > 0, (scale / known).clamp(1 / BOUND, BOUND), 1.0)
