"""Next-token loss of both directions of generation: a report from an image, an image from a report.

A position computes logits over its own modality alone, which halves the work of the head and leaves nothing to mask
when sampling. The z term (PaLM, Chowdhery et al., 2022) keeps the logits' normaliser near 0.
"""

from torch import Tensor
from torch.nn.functional import cross_entropy


def token_loss(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return sums over the tokens.

    Args:
        logits: (T, C) over the classes of one modality.
        target: (T,) class of each position.

    Returns:
        Sum of the cross-entropies in nats, and sum of the squared log-normalisers.
    """
    logits = logits.float()
    return cross_entropy(logits, target, reduction="sum"), logits.logsumexp(dim=-1).square().sum()
