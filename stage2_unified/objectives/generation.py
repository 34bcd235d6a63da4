"""Next-token loss of both directions of generation: a report from an image, an image from a report.

A position computes logits over its own modality alone, which halves the work of the head and leaves nothing to mask
when sampling. The z term (PaLM, Chowdhery et al., 2022) keeps the logits' normaliser near 0.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, pad
from torch.utils.checkpoint import checkpoint

IGNORED = -100
"""Target of positions that do not count."""
CHUNK = 4096
"""Positions whose logits are in memory at the same time: of 8,192 classes in float32, 128 MiB."""

ChunkLoss = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def token_loss(
    hidden: Tensor, weight: Tensor, target: Tensor, chunk_loss: ChunkLoss | None = None
) -> tuple[Tensor, Tensor]:
    """Return sums over the tokens, computed in equal chunks; of several, the backward pass computes logits again.

    Args:
        hidden: (T, H) states that predict the targets.
        weight: (C, H) of the head, for the classes of one modality.
        target: (T,) class of each position, or ``IGNORED``.
        chunk_loss: :func:`sum_of_chunk`, or the same compiled; None = the former.

    Returns:
        Sum of the cross-entropies in nats, and sum of the squared log-normalisers.
    """
    chunks = -(-len(target) // CHUNK)
    size = -(-len(target) // chunks)
    missing = chunks * size - len(target)  # fewer than there are chunks: all chunks have one shape, and one graph
    hidden, target = pad(hidden, (0, 0, 0, missing)), pad(target, (0, missing), value=IGNORED)
    compute: Any = chunk_loss or sum_of_chunk
    if chunks > 1:
        compute = partial(checkpoint, compute, use_reentrant=False, preserve_rng_state=False)
    sums = [
        compute(states, weight, classes)
        for states, classes in zip(hidden.split(size), target.split(size), strict=True)
    ]
    losses, squares = zip(*sums, strict=True)
    return torch.stack(losses).sum(), torch.stack(squares).sum()


def sum_of_chunk(hidden: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return both sums of :func:`token_loss` over one chunk."""
    logits = linear(hidden, weight).float()  # (T, C)
    normaliser, counted = logits.logsumexp(dim=-1), target != IGNORED  # (T,)
    loss = normaliser - logits.gather(1, target.clamp(min=0)[:, None])[:, 0]
    return torch.where(counted, loss, 0.0).sum(), torch.where(counted, normaliser.square(), 0.0).sum()
