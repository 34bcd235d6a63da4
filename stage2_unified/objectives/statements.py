"""Contrast and matching of images with statements, texts that are true of some images and false of others.

An image that agrees with a statement is a positive, one whose labels contradict it a negative; an image of which the
labels decide nothing is neither. A positive competes with the negatives alone and not with the other positives, whose
number differs from statement to statement (SINCERE: Feeney and Hughes, "SINCERE: Supervised Information
Noise-Contrastive Estimation REvisited", 2023); with one positive that is InfoNCE. A softmax ranks the images of a
statement, which is what zero-shot classification measures, and needs no bias as a sigmoid loss would (SigLIP: Zhai et
al., 2023).

Shapes: G studies of the step, n statements each, S = G n in the order of their studies, F findings.
"""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from medunifier.stage1_tokenizer.model.counter_random import gumbel

_NOISE = 100
"""Counter of the random numbers, beside those of the sampled negative reports."""


def relations(labels: Tensor, stated: Tensor, general: Tensor) -> Tensor:
    """Return (G, S) int8: 1 where an image agrees with a statement, -1 where it contradicts it, 0 otherwise.

    A study agrees with its own statements. Another one agrees if all stated findings are known and equal and the
    statement is general; it contradicts if a known one differs.

    Args:
        labels: (G, F) of the images: 1, 0 or -1 = unknown.
        stated: (G, n, F) of the statements: 1, 0 or -1 = not stated; without any stated one it is padding.
        general: (G, n) bool, whether the labels are all that a statement states.
    """
    stated_flat, per_study = stated.flatten(0, 1), stated.shape[1]
    # Counts of at most F, exact in any precision.
    present, absent = (labels == 1).float(), (labels == 0).float()
    affirmed, denied = (stated_flat == 1).float().T, (stated_flat == 0).float().T  # (F, S)
    equal, different = present @ affirmed + absent @ denied, present @ denied + absent @ affirmed  # (G, S)
    count = (stated_flat >= 0).sum(dim=1)
    own = torch.arange(len(stated_flat), device=stated.device) // per_study
    is_own = own[None, :] == torch.arange(len(labels), device=labels.device)[:, None]
    agrees = is_own | ((equal == count) & general.flatten())
    relation = agrees.to(torch.int8) - ((different > 0) & ~is_own).to(torch.int8)
    return relation * (count > 0).to(torch.int8)


def statement_contrast(similarity: Tensor, relation: Tensor) -> Tensor:
    """Return the mean of both directions, over the statements and the images with a positive and a negative.

    Args:
        similarity: (G, S) scaled, rows are images and columns statements.
        relation: (G, S) of :func:`relations`.

    Returns:
        Scalar in nats; ln(1 + negatives) at chance, 0 if no row has both.
    """
    return (_one_direction(similarity, relation) + _one_direction(similarity.T, relation.T)) / 2


def _one_direction(logits: Tensor, relation: Tensor) -> Tensor:
    positive, negative = relation > 0, relation < 0
    # A low number, not an infinite one: a row without negatives would have gradients that are not numbers.
    others = logits.masked_fill(~negative, -1e9).logsumexp(dim=1, keepdim=True)
    losses = torch.where(positive, softplus(others - logits), 0.0).sum(dim=1) / positive.sum(dim=1).clamp(min=1)
    counted = positive.any(dim=1) & negative.any(dim=1)
    return torch.where(counted, losses, 0.0).sum() / counted.sum().clamp(min=1)


def sample_contradicting(relation: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Sample, for each image, a statement that it contradicts.

    Every process samples for all images from one seed, as for the negative reports.

    Args:
        relation: (G, S) of :func:`relations`.
        seed: of the random numbers.

    Returns:
        (G,) columns; and (G,) bool, False where no statement contradicts (the column is arbitrary).
    """
    allowed = relation < 0
    seeds = torch.full((1,), seed, device=relation.device)
    noise = gumbel(seeds, _NOISE, relation.numel()).view_as(relation)
    return noise.masked_fill(~allowed, float("-inf")).argmax(dim=1), allowed.any(dim=1)
