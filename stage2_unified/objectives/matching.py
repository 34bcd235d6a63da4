"""Image-text matching (ITM): classify whether a report belongs to an image, with hard negatives.

Negatives are sampled in proportion to the contrast's similarity (ALBEF, Li et al., 2021), one in each direction: a
report that is close to the image, and a report to which the image is close.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from medunifier.stage1_tokenizer.model.counter_random import gumbel

NEGATIVES = 2


def sample_negatives(similarity: Tensor, allowed: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Sample two negative reports for each image of the global batch, on its device.

    Every process samples for all images from one seed, so the result does not depend on the number of processes.

    Args:
        similarity: (B, B) scaled, rows are images.
        allowed: (B, B) bool, where report j may be a negative of image i (another report of another patient).
        seed: of the random numbers.

    Returns:
        (B, 2) columns, by image -> text and by text -> image similarity; and (B,) bool, False for images without any
        allowed negative (their columns are arbitrary and must not be used).
    """
    similarity = similarity.detach().float()
    usable = allowed.any(dim=1)
    excluded = ~allowed & usable[:, None]
    seeds = torch.full((1,), seed, device=similarity.device)  # filled there: a tensor of a list would be copied
    columns = []
    for direction in range(NEGATIVES):
        noise = gumbel(seeds, direction, similarity.numel()).view_as(similarity)
        logits = similarity.log_softmax(dim=1 - direction) + noise
        columns.append(logits.masked_fill(excluded, float("-inf")).argmax(dim=1))
    return torch.stack(columns, dim=1), usable


def matching_loss(logits: Tensor, has_match: Tensor, usable: Tensor) -> Tensor:
    """Return the sum of the cross-entropies over the matched text and the n negatives of each image.

    Args:
        logits: (B, 1 + n, 2), the matched text first; class 1 = belong together.
        has_match: (B,) bool, False where there is no matched text.
        usable: (B,) bool, False where the negatives do not count.

    Returns:
        Scalar in nats, over the pairs that count.
    """
    target = torch.zeros(logits.shape[:2], dtype=torch.long, device=logits.device)
    target[:, 0] = 1
    counted = usable[:, None].repeat(1, logits.shape[1])
    counted[:, 0] = has_match
    losses = cross_entropy(logits.float().flatten(0, 1), target.flatten(), reduction="none").view_as(target)
    return torch.where(counted, losses, 0.0).sum()


def matching_accuracy(logits: Tensor, has_match: Tensor, usable: Tensor) -> Tensor:
    """Return the balanced accuracy in [0, 1], the mean over the two classes; 0.5 at chance.

    Args as for :func:`matching_loss`. Where no negative counts, it is the accuracy of the matched pairs.
    """
    matched = logits.argmax(dim=-1) == 1
    positive = (matched[:, 0] & has_match).sum() / has_match.sum().clamp(min=1)
    negatives = (usable.sum() * (logits.shape[1] - 1)).clamp(min=1)
    negative = (~matched[:, 1:] & usable[:, None]).sum() / negatives
    return torch.where(usable.any(), (positive + negative) / 2, positive)
