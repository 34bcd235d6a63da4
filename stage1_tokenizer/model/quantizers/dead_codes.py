"""Codebook usage statistics and dead-code replacement, shared by several quantizers."""

import torch
from torch import Tensor, nn

from medunifier.shared.training.distributed import all_reduce_sum, rank, world_size
from medunifier.stage1_tokenizer.config import QuantizerConfig
from medunifier.stage1_tokenizer.model.quantizers.base import Quantizer

USAGE_DECAY = 0.95
"""Decay of the moving average of each entry's usage: about 20 steps, so that a rare code is not taken for a dead
one."""


class DeadCodeReplacementQuantizer(Quantizer):
    """Replace unused entries by encoder vectors of the current batch.

    Everything that decides on a replacement is in the buffers, and the choice of vectors is a pure function of the
    step and of their positions in the global batch: a resumed run replaces the same entries as an uninterrupted one,
    however the batch is split over processes and micro-batches.
    """

    use: Tensor
    steps: Tensor

    def __init__(self, codebook_size: int, dim: int, config: QuantizerConfig) -> None:
        super().__init__(codebook_size, dim, config)
        self.embedding = nn.Embedding(codebook_size, dim)
        self.register_buffer("use", torch.full((codebook_size,), 1 / codebook_size))  # (K,) EMA of code frequencies
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        # Of the current step, over all micro-batches of this process:
        self._counts: Tensor | None = None  # (K,)
        self._vectors: list[Tensor] = []

    def record_usage(self, vectors: Tensor, codes: Tensor) -> None:
        """Record the vectors (N, D) and codes (N,) of a training pass; ignored outside training."""
        if self.training and torch.is_grad_enabled():
            counts = torch.bincount(codes, minlength=self.codebook_size).float()
            self._counts = counts if self._counts is None else self._counts + counts
            self._vectors.append(vectors.detach())

    def update_codebook(self, counts: Tensor) -> None:
        """Update the codebook from the usage counts (K,) of all processes. Called each step, before replacement."""

    def set_entries(self, codes: Tensor, vectors: Tensor) -> None:
        """Set the entries ``codes`` (N,) to ``vectors`` (N, D)."""
        self.embedding.weight[codes] = vectors.to(self.embedding.weight.dtype)

    @torch.no_grad()
    def end_step(self) -> None:
        """Update the usage statistics; every ``dead_code_interval`` steps replace dead entries."""
        if self._counts is None:
            return
        counts = all_reduce_sum(self._counts)
        self.update_codebook(counts)
        vectors = torch.stack(self._vectors)  # (M, N, D)
        self._counts, self._vectors = None, []
        self.use.lerp_(counts / counts.sum(), 1 - USAGE_DECAY)
        self.steps += 1
        interval = self.config.dead_code_interval
        if interval and int(self.steps) % interval == 0:
            self._replace_dead_codes(vectors)

    def _replace_dead_codes(self, vectors: Tensor) -> None:
        """Replace dead entries by vectors of this process, (M, N, D) from its micro-batches, and of the others."""
        dead = (self.use < self.config.dead_code_threshold / self.codebook_size).nonzero().squeeze(1)
        if not len(dead):
            return
        generator = torch.Generator().manual_seed(int(self.steps))
        world, total = world_size(), len(vectors) * world_size() * vectors.shape[1]
        # Positions in the global batch, in stream order: micro-batch, process, vector. Each is used once, if there
        # are enough.
        positions = torch.randperm(total, generator=generator)[torch.arange(len(dead)) % total].to(vectors.device)
        part, vector = positions // vectors.shape[1], positions % vectors.shape[1]
        mine = part % world == rank()
        chosen = torch.where(mine[:, None], vectors[part // world, vector], 0.0)  # zero where another process has it
        self.set_entries(dead, all_reduce_sum(chosen))
        self.use[dead] = 1 / self.codebook_size  # as if used evenly, so that a new entry has time to be used
