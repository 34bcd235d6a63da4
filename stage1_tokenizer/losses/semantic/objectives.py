"""Losses of the semantic heads: pure functions of their outputs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cosine_similarity

from medunifier.shared.training.distributed import all_gather, rank, world_size
from medunifier.stage1_tokenizer.losses.perceptual import unit_features


@dataclass(frozen=True)
class LabelBalance:
    """Weights that give present and absent cases of a finding, and all findings, equal shares of the loss.

    Attributes:
        present, absent: (F,) weight of a case by its label; 0 for a finding that is not learned.
    """

    present: Tensor
    absent: Tensor


def label_loss(logits: Tensor, labels: Tensor, balance: LabelBalance) -> Tensor:
    """Return the balanced binary cross-entropy in nats, ln(2) at chance.

    The weights come from the whole training set, not from the batch, so that the mean over processes and
    micro-batches equals the loss of the whole batch.

    Args:
        logits: (B, F).
        labels: (B, F) 1, 0, or NaN where unknown, which is left out.
        balance: on the device of the logits.
    """
    known = ~labels.isnan()
    truth = labels.nan_to_num()
    weight = known * torch.where(truth > 0, balance.present, balance.absent)
    losses = binary_cross_entropy_with_logits(logits.float(), truth, reduction="none")
    learned = (balance.present > 0).sum().clamp(min=1)
    return (weight * losses).sum() / (len(labels) * learned)


def alignment_loss(projected: Tensor, features: Tensor) -> Tensor:
    """Return the mean of 1 - cosine over the codes, from 0 to 2.

    As in REPA (Yu et al., 2024) and VA-VAE (Yao et al., 2025), which add margins.

    Args:
        projected: (B, C, h, w) projection of the quantized features.
        features: (B, C, h, w) of the teacher, without gradient.
    """
    return 1 - cosine_similarity(projected.float(), features.float(), dim=1).mean()


def feature_distance(features: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """Return the mean squared distance of normalized features over depths and positions: 0 if equal, at most 4.

    Args:
        features, others: (B, C, h, w) of each depth, of two sets of images.
    """
    distances = [
        (unit_features(a) - unit_features(b)).square().sum(dim=1).mean()
        for a, b in zip(features, others, strict=True)
    ]
    return torch.stack(distances).mean()


def report_contrast(
    image: Tensor, report: Tensor, scale: Tensor, report_key: Tensor, patient_key: Tensor, has_report: Tensor
) -> Tensor:
    """Return the symmetric InfoNCE in nats over the studies of all processes.

    Equal reports are positives of each other; other studies of the same patient are neither positives nor negatives.
    Each process computes the loss of the global batch and differentiates it for its own studies, so that the mean of
    the gradients over processes is the gradient of the global batch.

    Args:
        image, report: (B, E) unit-norm embeddings of this process.
        scale: inverse temperature.
        report_key, patient_key: (B,) integers, equal for equal reports and for one patient.
        has_report: (B,) bool; a study without a report takes no part.
    """
    image, report = _global(image), _global(report)
    report_key, patient_key, has_report = (all_gather(value) for value in (report_key, patient_key, has_report))
    same_report = report_key[:, None] == report_key[None, :]
    excluded = ((patient_key[:, None] == patient_key[None, :]) & ~same_report) | ~(
        has_report[:, None] & has_report[None, :]
    )
    positive = same_report & ~excluded
    similarity = scale * image @ report.T  # (G, G), rows are images
    total = similarity.new_zeros(())
    for logits in (similarity, similarity.T):
        log_probability = logits.masked_fill(excluded, -1e4).log_softmax(dim=1)
        sums = torch.where(positive, log_probability, 0.0).sum(dim=1)
        total = total - (sums / positive.sum(dim=1).clamp(min=1)).sum() / (2 * has_report.sum().clamp(min=1))
    return total


def _global(local: Tensor) -> Tensor:
    """(B, E) -> (G, E) of all processes; the gradient of this process' rows is scaled for the mean over processes."""
    if world_size() == 1:
        return local
    gathered, begin = all_gather(local), rank() * len(local)
    scaled = local.detach() + world_size() * (local - local.detach())  # the value is `local`, to the last bit
    return torch.cat([gathered[:begin], scaled, gathered[begin + len(local) :]])
