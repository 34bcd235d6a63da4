"""Codebook usage statistics and dead-code replacement, shared by several quantizers."""

from typing import Any

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
        self._step = 0  # the same as `steps`, which would have to be read back from the device
        # Of the current step, over all micro-batches of this process:
        self._counts: Tensor | None = None  # (K,)
        self._vectors: list[Tensor] = []

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        super()._load_from_state_dict(*arguments, **options)
        self._step = int(self.steps)

    def record_usage(self, vectors: Tensor, codes: Tensor) -> None:
        counts = torch.zeros_like(self.use).index_add_(0, codes, torch.ones_like(codes, dtype=self.use.dtype))
        self._counts = counts if self._counts is None else self._counts + counts
        self._vectors.append(vectors)

    def update_codebook(self, counts: Tensor) -> None:
        """Update the codebook from the usage counts (K,) of all processes. Called each step, before replacement."""

    def set_entries(self, chosen: Tensor, vectors: Tensor) -> None:
        """Set the entries where ``chosen`` (K,) is true to those of ``vectors`` (K, D)."""
        weight = self.embedding.weight
        weight.copy_(torch.where(chosen[:, None], vectors.to(weight.dtype), weight))

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
        self._step += 1
        interval = self.config.dead_code_interval
        if interval and self._step % interval == 0:
            self._replace_dead_codes(vectors)

    def _replace_dead_codes(self, vectors: Tensor) -> None:
        """Replace dead entries by vectors of this process, (M, N, D) from its micro-batches, and of the others.

        A replacement is computed for every entry and used for the dead ones: their number stays on the device.
        """
        dead = self.use < self.config.dead_code_threshold / self.codebook_size  # (K,)
        generator = torch.Generator().manual_seed(self._step)
        world, total = world_size(), len(vectors) * world_size() * vectors.shape[1]
        # Positions in the global batch, in stream order: micro-batch, process, vector. The n-th dead entry takes the
        # n-th position: each is used once, if there are enough.
        order = torch.randperm(total, generator=generator).to(vectors.device)
        positions = order[(dead.cumsum(0) - 1).clamp(min=0) % total]  # (K,)
        part, vector = positions // vectors.shape[1], positions % vectors.shape[1]
        mine = part % world == rank()
        found = torch.where(mine[:, None], vectors[part // world, vector], 0.0)  # zero where another process has it
        self.set_entries(dead, all_reduce_sum(found))
        # As if used evenly, so that a new entry has time to be used.
        self.use.masked_fill_(dead, 1 / self.codebook_size)
