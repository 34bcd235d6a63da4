"""Samples in an order that is a pure function of (seed, epoch, position); the state is one integer.

There is no shuffle buffer and no iterable dataset: position *p* of the endless stream is sample
``order(seed, p // n)[p % n]``. So a resumed run sees what the uninterrupted one would have seen, at any
number of processes and workers; every sample is seen once an epoch; every rank takes equally many steps.
`accelerator.prepare` never sees the loader (Accelerate 1.15 reads an iterable on rank 0 alone by default).
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from medunifier.data.shards.dataset import Sample
from medunifier.shared.training.distributed import rank as own_rank
from medunifier.shared.training.distributed import world_size

if TYPE_CHECKING:
    from medunifier.shared.training.config import LoopConfig


class Studies(Protocol):
    """Samples by number, such as a :class:`data.shards.ShardDataset` or a choice out of one."""

    def __len__(self) -> int: ...
    def __getitem__(self, number: int, /) -> Sample: ...


@lru_cache(maxsize=2)
def epoch_order(samples: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of ``range(samples)`` in which an epoch visits them."""
    return np.random.default_rng((seed, epoch)).permutation(samples)


def sample_at(position: int, samples: int, seed: int) -> int:
    """Number of the sample at ``position`` of the endless stream."""
    return int(epoch_order(samples, seed, position // samples)[position % samples])


class _Positions(Sampler[list[int]]):
    """Batches of stream positions for one rank, from a global position on, without end."""

    def __init__(self, start: int, batch_size: int, rank: int, world: int) -> None:
        self._start, self._batch, self._rank, self._world = start, batch_size, rank, world

    def __iter__(self) -> Iterator[list[int]]:
        begin = self._start + self._rank * self._batch
        while True:
            yield list(range(begin, begin + self._batch))
            begin += self._batch * self._world


class _Stream(Dataset[tuple[int, Sample]]):
    """The endless stream as a dataset that maps positions to samples."""

    def __init__(self, dataset: Studies, seed: int) -> None:
        self._dataset, self._seed = dataset, seed

    def __getitem__(self, position: int) -> tuple[int, Sample]:
        return position, self._dataset[sample_at(position, len(self._dataset), self._seed)]


def sample_stream(
    dataset: Studies,
    collate: Callable[[Sequence[tuple[int, Sample]]], Any],
    *,
    batch_size: int,
    seed: int,
    position: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
) -> Iterator[Any]:
    """Endless batches of this rank.

    Args:
        dataset: samples of one split.
        collate: makes a batch of ``[(position, sample), …]``; the position seeds whatever is drawn for the
            sample, so that it does not depend on the worker that draws it.
        batch_size: samples a batch and rank.
        seed: of the order.
        position: samples that all ranks together have already consumed: the whole state.
        rank, world: this process, and how many there are.
        workers: loader processes; 0 reads in this one.
    """
    loader = DataLoader(
        _Stream(dataset, seed),
        batch_sampler=_Positions(position, batch_size, rank, world),
        collate_fn=collate,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
    )
    return iter(loader)


def training_stream(
    dataset: Studies, collate: Callable[[Sequence[tuple[int, Sample]]], Any], loop: "LoopConfig"
) -> Callable[[int], Iterator[Any]]:
    """What the training loop asks for: opens this process' batches at a position, as ``loop`` says."""

    def open_at(position: int) -> Iterator[Any]:
        return sample_stream(
            dataset,
            collate,
            batch_size=loop.batch_size,
            seed=loop.seed,
            position=position,
            rank=own_rank(),
            world=world_size(),
            workers=loop.workers,
        )

    return open_at


def batches_once(
    dataset: Studies,
    collate: Callable[[Sequence[tuple[int, Sample]]], Any],
    *,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    limit: int | None = None,
) -> Iterator[Any]:
    """This rank's share of one pass in the shards' order, the last batch smaller: for validation and judging.

    Sample i goes to rank ``i % world``; ``limit`` bounds the samples of all ranks together.
    """
    count = len(dataset) if limit is None else min(limit, len(dataset))
    mine = range(rank, count, world)
    for begin in range(0, len(mine), batch_size):
        yield collate([(number, dataset[number]) for number in mine[begin : begin + batch_size]])
