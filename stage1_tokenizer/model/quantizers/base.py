"""The quantizer interface and the nearest-entry lookup."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medunifier.stage1_tokenizer.config import QuantizerConfig

CHUNK_ELEMENTS = 2**24
"""Distances computed at a time: 64 MiB of float32, for any batch and codebook size."""


@dataclass(frozen=True)
class Quantized:
    """Output of a quantizer."""

    z_q: Tensor
    """(B, D, h, w) float32 codebook entries; straight-through gradient to the encoder."""
    codes: Tensor
    """(B, h, w) int64 indices of the entries."""
    losses: dict[str, Tensor]
    """Weighted scalar terms of the training loss, by name."""


def nearest_entry(z: Tensor, codebook: Tensor) -> Tensor:
    """Return the index of the Euclidean nearest entry, computed in chunks and in float32 even under autocast.

    Under autocast 0.7 to 6 % of the codes would differ from float64; in float32 none do. The distance is
    |z|^2 + |e|^2 - 2 z.e in taming's order of operations, so that near ties are resolved as in taming. On an exact
    tie the lowest index is returned. For torch.compile this is one operator, so compiled models find the same codes.

    Args:
        z: (N, D) vectors.
        codebook: (K, D) entries.

    Returns:
        (N,) int64.
    """
    codes: Tensor = _nearest_entry(z.detach().float(), codebook.detach().float())
    return codes


@torch.library.custom_op("medunifier::nearest_entry", mutates_args=())
def _nearest_entry(z: Tensor, codebook: Tensor) -> Tensor:
    chunk_size = max(1, CHUNK_ELEMENTS // len(codebook))
    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.autocast(z.device.type, enabled=False):
            norms = codebook.square().sum(dim=1)
            codes = [
                # 2 z.e is exact, so the order of operations is taming's.
                torch.sub(chunk.square().sum(dim=1, keepdim=True) + norms, chunk @ codebook.T, alpha=2).argmin(dim=1)
                for chunk in z.split(chunk_size)
            ]
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32
    return torch.cat(codes)


@_nearest_entry.register_fake
def _(z: Tensor, codebook: Tensor) -> Tensor:
    return z.new_empty(len(z), dtype=torch.int64)


class Quantizer(nn.Module, ABC):
    """A codebook of K entries of D dimensions. Parameters have taming's names.

    Args:
        codebook_size: K.
        dim: D.
        config: kind and loss weights.
    """

    def __init__(self, codebook_size: int, dim: int, config: QuantizerConfig) -> None:
        super().__init__()
        self.codebook_size, self.dim, self.config = codebook_size, dim, config

    @abstractmethod
    def codebook(self) -> Tensor:
        """Return the (K, D) float32 entries that codes are decoded to.

        The code of a vector is the Euclidean nearest of these entries, unless ``nearest`` is overridden. A quantizer
        can therefore be exported as a taming checkpoint.
        """

    def nearest(self, vectors: Tensor) -> Tensor:
        """(N, D) vectors -> (N,) codes, without gradient, in float32."""
        return nearest_entry(vectors, self.codebook())

    @abstractmethod
    def quantize(self, vectors: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """(N, D) float32 vectors -> straight-through entries (N, D), codes (N,), weighted losses."""

    def forward(self, z: Tensor) -> Quantized:
        """(B, D, h, w) vectors -> entries, codes, losses; in float32 even under autocast."""
        batch, dim, height, width = z.shape
        with torch.autocast(z.device.type, enabled=False):
            vectors = z.float().permute(0, 2, 3, 1).reshape(-1, dim)
            z_q, codes, losses = self.quantize(vectors)
            if self.training and torch.is_grad_enabled():
                self.record_usage(vectors.detach(), codes)
        z_q = z_q.reshape(batch, height, width, dim).permute(0, 3, 1, 2).contiguous()
        return Quantized(z_q, codes.reshape(batch, height, width), losses)

    def lookup(self, z: Tensor) -> Tensor:
        """(B, D, h, w) vectors -> (B, h, w) codes, without gradient."""
        batch, dim, height, width = z.shape
        vectors = z.detach().float().permute(0, 2, 3, 1).reshape(-1, dim)
        return self.nearest(vectors).reshape(batch, height, width)

    def entries(self, codes: Tensor) -> Tensor:
        """(B, h, w) codes -> (B, D, h, w) entries."""
        return self.codebook()[codes].permute(0, 3, 1, 2).contiguous()

    def record_usage(self, vectors: Tensor, codes: Tensor) -> None:
        """Record the vectors (N, D) and codes (N,) of a training pass, for :meth:`end_step`."""

    def end_step(self) -> None:
        """Apply updates that are not gradients. Call once after every optimizer step, on all processes."""
