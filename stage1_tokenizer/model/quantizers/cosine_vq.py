"""Low-dimensional codes on the unit sphere (ViT-VQGAN: Yu et al., 2022), with revival of dead entries.

Vectors and entries are divided by their norms, so that the lookup is by cosine; in few dimensions nearly the
whole book comes into use (37 -> 100 % in public comparisons, with rFID 5.8 -> 2.1). For a given vector the
Euclidean nearest of unit entries is the one of largest cosine, so the unit table is a taming codebook as it is.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, normalize

from medunifier.stage1_tokenizer.config import QuantizerConfig
from medunifier.stage1_tokenizer.model.quantizers.base import nearest_entry
from medunifier.stage1_tokenizer.model.quantizers.dead_codes import RevivingQuantizer


class CosineQuantizer(RevivingQuantizer):
    """Cosine lookup; the entries learn by gradient."""

    def __init__(self, codes: int, dimensions: int, config: QuantizerConfig) -> None:
        super().__init__(codes, dimensions, config)
        nn.init.normal_(self.embedding.weight)
        with torch.no_grad():
            self.embedding.weight.copy_(normalize(self.embedding.weight, dim=1))

    def table(self) -> Tensor:
        return normalize(self.embedding.weight.float(), dim=1)

    def quantize(self, rows: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        rows, table = normalize(rows, dim=1), self.table()
        codes = nearest_entry(rows, table)
        entries = table[codes]
        self.note(rows, codes)
        losses = {
            "codebook": self.config.codebook_weight * mse_loss(entries, rows.detach()),
            "commitment": self.config.commitment_weight * mse_loss(rows, entries.detach()),
        }
        return rows + (entries - rows).detach(), codes, losses
