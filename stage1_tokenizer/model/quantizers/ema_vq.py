"""EMA VQ: entries are moving averages of the vectors assigned to them (VQ-VAE-2: Razavi et al., 2019, appendix A.1).

The codebook has neither gradient nor loss: it follows the encoder by online k-means, and dead entries are replaced by
vectors of the batch. The sums are taken over all micro-batches and processes of a step.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from medunifier.shared.training.distributed import all_reduce_sum
from medunifier.stage1_tokenizer.config import QuantizerConfig
from medunifier.stage1_tokenizer.model.quantizers.base import nearest_entry
from medunifier.stage1_tokenizer.model.quantizers.dead_codes import DeadCodeReplacementQuantizer


class EMAQuantizer(DeadCodeReplacementQuantizer):
    """Euclidean lookup. Uses ``commitment_weight`` and ``decay``; ``codebook_weight`` has no effect."""

    count: Tensor
    total: Tensor

    def __init__(self, codebook_size: int, dim: int, config: QuantizerConfig) -> None:
        super().__init__(codebook_size, dim, config)
        nn.init.uniform_(self.embedding.weight, -1 / codebook_size, 1 / codebook_size)
        self.embedding.weight.requires_grad_(False)
        self.register_buffer("count", torch.ones(codebook_size))  # (K,) EMA of the number of assigned vectors
        self.register_buffer("total", self.embedding.weight.detach().clone())  # (K, D) EMA of their sum
        self._sums: Tensor | None = None  # (K, D), of the current step, over all micro-batches of this process

    def codebook(self) -> Tensor:
        return self.embedding.weight.float()

    def quantize(self, vectors: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        codes = nearest_entry(vectors, self.embedding.weight)
        entries = self.embedding(codes)
        losses = {"commitment": self.config.commitment_weight * mse_loss(vectors, entries)}
        return vectors + (entries - vectors).detach(), codes, losses

    def record_usage(self, vectors: Tensor, codes: Tensor) -> None:
        super().record_usage(vectors, codes)
        sums = torch.zeros_like(self.total).index_add_(0, codes, vectors)
        self._sums = sums if self._sums is None else self._sums + sums

    def update_codebook(self, counts: Tensor) -> None:
        assert self._sums is not None  # noqa: S101 - narrows a type
        weight = 1 - self.config.decay
        self.count.lerp_(counts, weight)
        self.total.lerp_(all_reduce_sum(self._sums), weight)
        self._sums = None
        # An unused entry does not move: numerator and denominator decay at the same rate, until both vanish.
        alive = self.count[:, None] > 1e-6
        self.embedding.weight.copy_(torch.where(alive, self.total / self.count[:, None], self.embedding.weight))

    def set_entries(self, chosen: Tensor, vectors: Tensor) -> None:
        super().set_entries(chosen, vectors)
        count = self.count.mean()
        self.count.copy_(torch.where(chosen, count, self.count))
        self.total.copy_(torch.where(chosen[:, None], vectors * count, self.total))
