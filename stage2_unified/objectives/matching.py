"""Image-text matching (ITM): classify whether a report belongs to an image, with hard negatives.

Negatives are sampled in proportion to the contrast's similarity (ALBEF, Li et al., 2021), one in each direction: a
report that is close to the image, and a report to which the image is close.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

NEGATIVES = 2


def sample_negatives(similarity: Tensor, allowed: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Sample two negative reports for each image of the global batch.

    Every process samples for all images from one seed, so the result does not depend on the number of processes.

    Args:
        similarity: (B, B) scaled, rows are images.
        allowed: (B, B) bool, where report j may be a negative of image i (another report of another patient).
        seed: of the random generator.

    Returns:
        (B, 2) columns, by image -> text and by text -> image similarity; and (B,) bool, False for images without any
        allowed negative (their columns are 0 and must not be used).
    """
    similarity = similarity.detach().float().cpu()
    allowed = allowed.cpu()
    generator = torch.Generator().manual_seed(seed)
    usable = allowed.any(dim=1)
    # A row without any allowed report still needs a distribution to sample from; `usable` marks it.
    safe = allowed | ~usable[:, None]
    columns = []
    for logits in (similarity.log_softmax(dim=1), similarity.log_softmax(dim=0)):
        weights = logits.masked_fill(~safe, float("-inf")).softmax(dim=1)
        columns.append(torch.multinomial(weights, 1, generator=generator))
    return torch.cat(columns, dim=1), usable


def matching_loss(logits: Tensor, usable: Tensor) -> Tensor:
    """Return the sum of the cross-entropies over the matched report and the negatives of each image.

    Args:
        logits: (B, 1 + NEGATIVES, 2), the matched report first; class 1 = belong together.
        usable: (B,) bool, False where the negatives do not count.

    Returns:
        Scalar in nats, over the B + NEGATIVES x usable pairs that count.
    """
    target = torch.zeros(logits.shape[:2], dtype=torch.long, device=logits.device)
    target[:, 0] = 1
    counted = torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)
    counted[:, 1:] = usable[:, None]
    losses = cross_entropy(logits.float().flatten(0, 1), target.flatten(), reduction="none").view_as(target)
    return torch.where(counted, losses, 0.0).sum()


def matching_accuracy(logits: Tensor, usable: Tensor) -> Tensor:
    """Return the balanced accuracy in [0, 1], the mean over the two classes; 0.5 at chance.

    Args as for :func:`matching_loss`. Where no negative counts, it is the accuracy of the matched pairs.
    """
    matched = logits.argmax(dim=-1) == 1
    positive = matched[:, 0].float().mean()
    if not usable.any():
        return positive
    return (positive + (~matched[usable][:, 1:]).float().mean()) / 2
