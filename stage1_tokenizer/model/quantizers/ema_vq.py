"""Entries that are the moving average of their vectors (VQ-VAE-2: Razavi et al., 2019, appendix A.1).

The codebook has no gradient and no loss of its own: it follows the encoder by online k-means, and an entry that
nothing is near restarts at a vector of the batch. The sums are over all micro-batches and processes of a step.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from medunifier.shared.training.distributed import all_reduce_sum
from medunifier.stage1_tokenizer.config import QuantizerConfig
from medunifier.stage1_tokenizer.model.quantizers.base import nearest_entry
from medunifier.stage1_tokenizer.model.quantizers.dead_codes import RevivingQuantizer


class EMAQuantizer(RevivingQuantizer):
    """Euclidean lookup; only ``commitment_weight`` counts, ``decay`` says how slowly an entry moves."""

    count: Tensor
    total: Tensor

    def __init__(self, codes: int, dimensions: int, config: QuantizerConfig) -> None:
        super().__init__(codes, dimensions, config)
        nn.init.uniform_(self.embedding.weight, -1 / codes, 1 / codes)
        self.embedding.weight.requires_grad_(False)
        self.register_buffer("count", torch.ones(codes))  # vectors an entry stands for, moving average
        self.register_buffer("total", self.embedding.weight.detach().clone())  # their sum, (K, D)
        self._sums: Tensor | None = None  # of the step under way, all micro-batches of this process

    def table(self) -> Tensor:
        return self.embedding.weight.float()

    def quantize(self, rows: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        codes = nearest_entry(rows, self.embedding.weight)
        entries = self.embedding(codes)
        self.note(rows, codes)
        losses = {"commitment": self.config.commitment_weight * mse_loss(rows, entries)}
        return rows + (entries - rows).detach(), codes, losses

    def note(self, rows: Tensor, codes: Tensor) -> None:
        super().note(rows, codes)
        if self.training and torch.is_grad_enabled():
            sums = torch.zeros_like(self.total).index_add_(0, codes, rows.detach())
            self._sums = sums if self._sums is None else self._sums + sums

    def follow(self, counts: Tensor) -> None:
        assert self._sums is not None
        share = 1 - self.config.decay
        self.count.lerp_(counts, share)
        self.total.lerp_(all_reduce_sum(self._sums), share)
        self._sums = None
        # Unused entries keep their place: numerator and denominator fade alike, until both are nothing.
        alive = self.count > 1e-6
        self.embedding.weight[alive] = self.total[alive] / self.count[alive, None]

    def place(self, entries: Tensor, rows: Tensor) -> None:
        super().place(entries, rows)
        weight = self.count.mean()
        self.count[entries] = weight
        self.total[entries] = rows * weight
