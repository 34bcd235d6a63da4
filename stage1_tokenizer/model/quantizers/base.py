"""The interface of a quantiser, and the lookup that all share."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medunifier.stage1_tokenizer.config import QuantizerConfig

CHUNK_ELEMENTS = 2**24
"""Distances held at once: 64 MiB of float32, whatever the batch and the book."""


@dataclass(frozen=True)
class Quantized:
    """What a quantiser makes of the encoder's vectors."""

    z_q: Tensor
    """(B, D, h, w) float32 entries; the gradient passes straight through to the encoder."""
    codes: Tensor
    """(B, h, w) int64 numbers of the entries."""
    losses: dict[str, Tensor]
    """Weighted scalars that are added to the training loss, by name."""


@torch.no_grad()
def nearest_entry(z: Tensor, table: Tensor) -> Tensor:
    """Number of the Euclidean nearest entry, in float32 whatever the surroundings, in chunks.

    Under autocast 0.7 to 6 % of the codes would change against float64, in float32 none. The distance is
    |z|^2 + |e|^2 - 2 z.e in taming's order of operations, so that near ties fall as they do there. The lowest
    number wins a tie.

    Args:
        z: (N, D) vectors.
        table: (K, D) entries.

    Returns:
        (N,) int64.
    """
    z, table = z.detach().float(), table.detach().float()
    rows = max(1, CHUNK_ELEMENTS // len(table))
    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.autocast(z.device.type, enabled=False):
            norms = table.square().sum(dim=1)
            parts = [
                (part.square().sum(dim=1, keepdim=True) + norms - 2 * (part @ table.T)).argmin(dim=1)
                for part in z.split(rows)
            ]
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32
    return torch.cat(parts)


class Quantizer(nn.Module, ABC):
    """A codebook of K entries of D dimensions, under taming's names of its parameters.

    Args:
        codes: K.
        dimensions: D.
        config: kind and weights.
    """

    def __init__(self, codes: int, dimensions: int, config: QuantizerConfig) -> None:
        super().__init__()
        self.codes, self.dimensions, self.config = codes, dimensions, config

    @abstractmethod
    def table(self) -> Tensor:
        """(K, D) float32: the rows that codes are decoded to.

        Its Euclidean nearest entry is this quantiser's code, unless ``nearest`` is overridden; so the quantiser
        can be written as a taming checkpoint.
        """

    def nearest(self, rows: Tensor) -> Tensor:
        """(N, D) vectors -> (N,) codes, without gradient, in float32."""
        return nearest_entry(rows, self.table())

    @abstractmethod
    def quantize(self, rows: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """(N, D) float32 vectors -> straight-through entries (N, D), codes (N,), weighted losses."""

    def forward(self, z: Tensor) -> Quantized:
        """(B, D, h, w) vectors -> entries, codes, losses; float32 outside autocast."""
        batch, dimensions, height, width = z.shape
        with torch.autocast(z.device.type, enabled=False):
            rows = z.float().permute(0, 2, 3, 1).reshape(-1, dimensions)
            z_q, codes, losses = self.quantize(rows)
        z_q = z_q.reshape(batch, height, width, dimensions).permute(0, 3, 1, 2).contiguous()
        return Quantized(z_q, codes.reshape(batch, height, width), losses)

    def lookup(self, z: Tensor) -> Tensor:
        """(B, D, h, w) vectors -> (B, h, w) codes, without gradient."""
        batch, dimensions, height, width = z.shape
        rows = z.detach().float().permute(0, 2, 3, 1).reshape(-1, dimensions)
        return self.nearest(rows).reshape(batch, height, width)

    def entries(self, codes: Tensor) -> Tensor:
        """(B, h, w) codes -> (B, D, h, w) entries."""
        return self.table()[codes].permute(0, 3, 1, 2).contiguous()

    def end_step(self) -> None:
        """Called once after every optimizer step, on all processes: upkeep that is no gradient."""
