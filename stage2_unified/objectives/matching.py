"""Image-text matching (ITM): does this report belong to this image? Two-way, with hard negatives.

Negatives are drawn in proportion to the contrast's own similarity (ALBEF, Li et al., 2021), one in each
direction: a report that this image takes for its own, and a report that takes this image for its own.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

NEGATIVES = 2


class MatchHead(nn.Module):
    """Two logits from what stands at ``<match>`` and what the image's prefix amounts to.

    The product of the two projections is a similarity that the head can read at once, where the hidden state of
    ``<match>`` alone would first have to learn to compare.
    """

    def __init__(self, width: int, embedding_dim: int) -> None:
        super().__init__()
        self.image = nn.Linear(width, embedding_dim)
        self.pair = nn.Linear(width, embedding_dim)
        self.out = nn.Linear(width + embedding_dim, 2)

    def forward(self, match: Tensor, image: Tensor) -> Tensor:
        """(…, H) at ``<match>``, (…, H) at ``<emb_img>`` -> (…, 2); class 1 = belongs together."""
        similarity: Tensor = self.image(image) * self.pair(match)
        logits: Tensor = self.out(torch.cat([match, similarity], dim=-1))
        return logits


def draw_negatives(similarity: Tensor, allowed: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Draw two negative reports for each image of the global batch.

    Every process draws the whole table from one seed, so the draw does not depend on their number.

    Args:
        similarity: (B, B) scaled, rows are images.
        allowed: (B, B) bool, where report j may be a negative of image i (another report of another patient).
        seed: of the draw.

    Returns:
        (B, 2) columns: drawn by image -> text, then by text -> image; and (B,) bool, False for images that
        have no allowed negative (their columns are 0 and mean nothing).
    """
    similarity = similarity.detach().float().cpu()
    allowed = allowed.cpu()
    generator = torch.Generator().manual_seed(seed)
    usable = allowed.any(dim=1)
    # A row without any allowed report still needs a distribution to draw from; `usable` marks it.
    safe = allowed | ~usable[:, None]
    columns = []
    for logits in (similarity.log_softmax(dim=1), similarity.log_softmax(dim=0)):
        weights = logits.masked_fill(~safe, float("-inf")).softmax(dim=1)
        columns.append(torch.multinomial(weights, 1, generator=generator))
    return torch.cat(columns, dim=1), usable


def matching_loss(logits: Tensor, usable: Tensor) -> Tensor:
    """Sum of the cross-entropies over the matched report and the negatives of each image.

    Args:
        logits: (B, 1 + NEGATIVES, 2), the matched report first; class 1 = belongs together.
        usable: (B,) bool, False where the negatives mean nothing.

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
    """Balanced accuracy of the decisions: the mean over the two classes; 0.5 at chance.

    Args as for :func:`matching_loss`. Where no negative counts, it is the matched pairs' alone.
    """
    belongs = logits.argmax(dim=-1) == 1
    positive = belongs[:, 0].float().mean()
    if not usable.any():
        return positive
    return (positive + (~belongs[usable][:, 1:]).float().mean()) / 2
