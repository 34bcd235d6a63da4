"""Codebook usage and perplexity over a whole data set; figures of single batches would be misleading."""

import torch
from torch import Tensor

from medunifier.shared.training.distributed import all_reduce_sum


class CodeCount:
    """Counts codes over a whole set and all processes.

    Args:
        codes: number of codebook entries, K.
        device: of the counts.
    """

    def __init__(self, codes: int, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(codes, dtype=torch.int64, device=device)

    def add(self, codes: Tensor) -> None:
        """Count codes of any shape."""
        self.counts += torch.bincount(codes.flatten(), minlength=len(self.counts))

    def figures(self) -> dict[str, float]:
        """``codebook_usage``: fraction of entries that occur at all. ``perplexity``: exp of the entropy, 1 … K."""
        counts = all_reduce_sum(self.counts).double()
        fraction = counts / counts.sum().clamp(min=1)
        entropy = -torch.special.xlogy(fraction, fraction).sum()
        return {"codebook_usage": float((counts > 0).double().mean()), "perplexity": float(entropy.exp())}
