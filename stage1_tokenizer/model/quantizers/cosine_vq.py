"""Cosine VQ: low-dimensional codes on the unit sphere (ViT-VQGAN: Yu et al., 2022), with dead-code replacement.

Vectors and entries are normalized, so that the lookup is by cosine similarity. In few dimensions nearly the whole
codebook is used (37 -> 100 % in public comparisons, with rFID 5.8 -> 2.1). Among unit entries the Euclidean nearest
is the one with the largest cosine, so the normalized codebook can be used as a taming codebook without change.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, normalize

from medunifier.stage1_tokenizer.config import QuantizerConfig
from medunifier.stage1_tokenizer.model.quantizers.base import nearest_entry
from medunifier.stage1_tokenizer.model.quantizers.dead_codes import DeadCodeReplacementQuantizer


class CosineQuantizer(DeadCodeReplacementQuantizer):
    """Cosine lookup; the entries are learned by gradient."""

    def __init__(self, codebook_size: int, dim: int, config: QuantizerConfig) -> None:
        super().__init__(codebook_size, dim, config)
        nn.init.normal_(self.embedding.weight)
        with torch.no_grad():
            self.embedding.weight.copy_(normalize(self.embedding.weight, dim=1))

    def codebook(self) -> Tensor:
        return normalize(self.embedding.weight.float(), dim=1)

    def quantize(self, vectors: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        vectors, codebook = normalize(vectors, dim=1), self.codebook()
        codes = nearest_entry(vectors, codebook)
        entries = codebook[codes]
        losses = {
            "codebook": self.config.codebook_weight * mse_loss(entries, vectors.detach()),
            "commitment": self.config.commitment_weight * mse_loss(vectors, entries.detach()),
        }
        return vectors + (entries - vectors).detach(), codes, losses

    def record_usage(self, vectors: Tensor, codes: Tensor) -> None:
        super().record_usage(normalize(vectors, dim=1), codes)
