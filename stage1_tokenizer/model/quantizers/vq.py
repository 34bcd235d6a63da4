"""The VQ-VAE quantizer: Euclidean nearest entry (van den Oord et al., 2017; Esser et al., 2021)."""

from torch import Tensor, nn
from torch.nn.functional import mse_loss

from medunifier.stage1_tokenizer.config import QuantizerConfig
from medunifier.stage1_tokenizer.model.quantizers.base import Quantizer, nearest_entry


class VectorQuantizer(Quantizer):
    """Taming's ``VectorQuantizer2``, with a separate setting for each of its two loss weights.

    Taming's ``beta`` weights the codebook loss by default (``legacy=True``) and the commitment loss otherwise. Here
    they are ``codebook_weight`` and ``commitment_weight``.
    """

    def __init__(self, codebook_size: int, dim: int, config: QuantizerConfig) -> None:
        super().__init__(codebook_size, dim, config)
        self.embedding = nn.Embedding(codebook_size, dim)
        nn.init.uniform_(self.embedding.weight, -1 / codebook_size, 1 / codebook_size)

    def codebook(self) -> Tensor:
        return self.embedding.weight.float()

    def quantize(self, vectors: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        codes = nearest_entry(vectors, self.embedding.weight)
        entries = self.embedding(codes)
        losses = {
            "codebook": self.config.codebook_weight * mse_loss(entries, vectors.detach()),
            "commitment": self.config.commitment_weight * mse_loss(vectors, entries.detach()),
        }
        return vectors + (entries - vectors).detach(), codes, losses
