"""Upkeep that several quantisers share: how much each entry is used, and what becomes of the dead ones."""

import torch
from torch import Tensor, nn

from medunifier.shared.training.distributed import all_reduce_sum, rank, world_size
from medunifier.stage1_tokenizer.config import QuantizerConfig
from medunifier.stage1_tokenizer.model.quantizers.base import Quantizer

USE_DECAY = 0.95
"""Of the moving average of each entry's use: about 20 steps, so that a rare code is not taken for a dead one."""


class RevivingQuantizer(Quantizer):
    """Entries that nothing uses restart at vectors of the batch.

    Whatever decides on a revival is in the buffers, and the choice of vectors is a pure function of the step and of
    their places in the global batch: a resumed run revives what the uninterrupted one would have revived, however
    the batch is split over processes and micro-batches.
    """

    use: Tensor
    steps: Tensor

    def __init__(self, codes: int, dimensions: int, config: QuantizerConfig) -> None:
        super().__init__(codes, dimensions, config)
        self.embedding = nn.Embedding(codes, dimensions)
        self.register_buffer("use", torch.full((codes,), 1 / codes))  # share of the tokens, moving average
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._counts: Tensor | None = None  # of the step under way, all micro-batches of this process
        self._rows: list[Tensor] = []

    def note(self, rows: Tensor, codes: Tensor) -> None:
        """Remember which vectors became which codes, if this pass is one of training."""
        if self.training and torch.is_grad_enabled():
            counts = torch.bincount(codes, minlength=self.codes).float()
            self._counts = counts if self._counts is None else self._counts + counts
            self._rows.append(rows.detach())

    def follow(self, counts: Tensor) -> None:
        """Called once a step with the uses of each entry (K,) on all processes, before dead ones are looked for."""

    def place(self, entries: Tensor, rows: Tensor) -> None:
        """Put the entries of these numbers at these vectors."""
        self.embedding.weight[entries] = rows.to(self.embedding.weight.dtype)

    @torch.no_grad()
    def end_step(self) -> None:
        """Follow the use of each entry; every ``dead_code_interval`` steps move the dead ones."""
        if self._counts is None:
            return
        counts = all_reduce_sum(self._counts)
        self.follow(counts)
        rows = torch.stack(self._rows)
        self._counts, self._rows = None, []
        self.use.lerp_(counts / counts.sum(), 1 - USE_DECAY)
        self.steps += 1
        every = self.config.dead_code_interval
        if every and int(self.steps) % every == 0:
            self._revive(rows)

    def _revive(self, rows: Tensor) -> None:
        """Restart dead entries at vectors of ``rows`` (M, N, D), this process' micro-batches, and of the others'."""
        dead = (self.use < self.config.dead_code_threshold / self.codes).nonzero().squeeze(1)
        if not len(dead):
            return
        draw = torch.Generator().manual_seed(int(self.steps))
        world, total = world_size(), len(rows) * world_size() * rows.shape[1]
        # Places in the global batch, whose order is that of the stream: micro-batch, process, vector. Each once, as
        # long as there are enough.
        places = torch.randperm(total, generator=draw)[torch.arange(len(dead)) % total].to(rows.device)
        part, vector = places // rows.shape[1], places % rows.shape[1]
        own = part % world == rank()
        chosen = torch.where(own[:, None], rows[part // world, vector], 0.0)  # zero where another process has it
        self.place(dead, all_reduce_sum(chosen))
        self.use[dead] = 1 / self.codes  # time to be used before it is looked at again
