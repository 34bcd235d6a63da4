"""The quantiser of VQ-VAE and VQ-GAN: the Euclidean nearest entry (van den Oord et al., 2017; Esser et al., 2021)."""

from torch import Tensor, nn
from torch.nn.functional import mse_loss

from medunifier.stage1_tokenizer.config import QuantizerConfig
from medunifier.stage1_tokenizer.model.quantizers.base import Quantizer, nearest_entry


class VectorQuantizer(Quantizer):
    """Taming's ``VectorQuantizer2``, with one name for each of its two weights.

    Taming's ``beta`` weighs the codebook term in its default (``legacy=True``) and the commitment term otherwise;
    here ``codebook_weight`` and ``commitment_weight`` say which is which.
    """

    def __init__(self, codes: int, dimensions: int, config: QuantizerConfig) -> None:
        super().__init__(codes, dimensions, config)
        self.embedding = nn.Embedding(codes, dimensions)
        nn.init.uniform_(self.embedding.weight, -1 / codes, 1 / codes)

    def table(self) -> Tensor:
        return self.embedding.weight.float()

    def quantize(self, rows: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        codes = nearest_entry(rows, self.embedding.weight)
        entries = self.embedding(codes)
        losses = {
            "codebook": self.config.codebook_weight * mse_loss(entries, rows.detach()),
            "commitment": self.config.commitment_weight * mse_loss(rows, entries.detach()),
        }
        return rows + (entries - rows).detach(), codes, losses
