"""Data loading in an order that is a pure function of (seed, epoch, position); the state is one integer.

There is no shuffle buffer and no iterable dataset: position *p* of the endless stream is sample
``order(seed, p // n)[p % n]``. So a resumed run reads the same samples as an uninterrupted one, with any number of
processes and workers; every sample is read once per epoch; every rank takes the same number of steps. The loader is
not passed to `accelerator.prepare` (Accelerate 1.15 reads an iterable on rank 0 only by default).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from medunifier.data.shards.dataset import Sample
from medunifier.shared.errors import UserError
from medunifier.shared.files.os_services import free_shared_memory, usable_cores
from medunifier.shared.training.distributed import rank as current_rank
from medunifier.shared.training.distributed import world_size

if TYPE_CHECKING:
    from medunifier.shared.training.config import LoopConfig

_PREFETCHED = 4  # batches per loader process
_MAX_SECONDS = 900  # for one batch, also from a slow remote archive
_AMPLE_SHARED_MEMORY = 2**33  # not measured against the batches


class Studies(Protocol):
    """Map-style dataset of samples, such as a :class:`ShardDataset` or a subset of one."""

    def __len__(self) -> int: ...
    def __getitem__(self, number: int, /) -> Sample: ...


@lru_cache(maxsize=2)
def epoch_order(samples: int, seed: int, epoch: int) -> np.ndarray:
    """Return the permutation of ``range(samples)`` of an epoch."""
    return np.random.default_rng((seed, epoch)).permutation(samples)


def sample_at(position: int, samples: int, seed: int) -> int:
    """Return the index of the sample at ``position`` of the endless stream."""
    return int(epoch_order(samples, seed, position // samples)[position % samples])


class _Positions(Sampler[list[int]]):
    """Endless batches of stream positions for one rank, starting at a global position."""

    def __init__(self, start: int, batch_size: int, rank: int, world: int) -> None:
        self._start, self._batch, self._rank, self._world = start, batch_size, rank, world

    def __iter__(self) -> Iterator[list[int]]:
        begin = self._start + self._rank * self._batch
        while True:
            yield list(range(begin, begin + self._batch))
            begin += self._batch * self._world


class _Stream(Dataset[tuple[int, Sample]]):
    """Dataset that maps positions of the endless stream to samples."""

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
    """Return an endless iterator over the batches of this rank.

    Args:
        dataset: samples of one split.
        collate: makes a batch of ``[(position, sample), …]``; the position seeds all random choices
            for the sample, so that they do not depend on the worker.
        batch_size: samples per batch and rank.
        seed: seed of the order.
        position: samples already consumed by all ranks together: the whole state.
        rank, world: rank of this process, and number of processes.
        workers: loader processes, at most one per usable core; 0 reads in this process.
    """
    positions = _Positions(position, batch_size, rank, world)
    # A copy to the GPU can overlap with the step before.
    return _load(_Stream(dataset, seed), positions, collate, workers, pinned=torch.cuda.is_available())


def ordered_batches(
    dataset: Any,
    batches: Sequence[list[Any]],
    collate: Callable[[Sequence[Any]], Any],
    *,
    workers: int = 0,
    option: str,
) -> Iterator[Any]:
    """Yield ``collate([dataset[key] for key in batch])`` of each batch, in order.

    Args:
        dataset: has ``__getitem__`` for the keys in ``batches``.
        batches: keys of the samples of each batch.
        collate: makes a batch of its samples, in the loader process.
        workers: loader processes, at most one per usable core; 0 reads in this process.
        option: sets their number, for errors.

    Raises:
        UserError: if the loader processes lack shared memory, or one of them fails.
    """
    return _load(dataset, batches, collate, workers, option)


def _load(
    dataset: Any,
    batches: Iterable[list[Any]],
    collate: Callable[[Sequence[Any]], Any],
    workers: int,
    option: str | None = None,
    pinned: bool = False,
) -> Iterator[Any]:
    """Yield the collated batches; ``option`` sets the number of loader processes, None: ``loop.workers``."""
    workers = min(workers, usable_cores())  # more are slower, and torch warns of them
    if workers:
        remedy = "--loop.workers 0" if option is None else f"fewer {option}"
        _check_shared_memory(lambda: collate([dataset[key] for key in next(iter(batches))]), workers, remedy)
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        prefetch_factor=_PREFETCHED if workers else None,
        timeout=_MAX_SECONDS if workers else 0,
        pin_memory=pinned,
    )
    return _named_failures(iter(loader), option or "--loop.workers")


def _check_shared_memory(first_batch: Callable[[], Any], workers: int, remedy: str) -> None:
    """Refuse loader processes whose batches do not fit into /dev/shm: they would hang or be killed while passing one.

    Raises:
        UserError: with the sizes and the remedies.
    """
    free = free_shared_memory()
    if free is None or free > _AMPLE_SHARED_MEMORY:
        return
    needed = _tensor_bytes(first_batch()) * (_PREFETCHED * workers + 1)
    if needed > free:
        raise UserError(
            f"{workers} loader processes need about {needed / 2**20:.1f} MiB of shared memory, and /dev/shm has "
            f"{free / 2**20:.1f} MiB free: enlarge it (docker run --shm-size 8g) or pass {remedy}"
        )


def _tensor_bytes(batch: Any) -> int:
    """Return the bytes of all tensors in a batch of nested mappings, sequences and objects with attributes."""
    if isinstance(batch, Tensor):
        return batch.nbytes
    if isinstance(batch, Mapping):
        batch = batch.values()
    elif not isinstance(batch, (list, tuple)):
        batch = getattr(batch, "__dict__", {}).values()
    return sum(_tensor_bytes(part) for part in batch)


def _named_failures(batches: Iterator[Any], option: str) -> Iterator[Any]:
    """Yield the batches; a loader process that died or hangs ends the run with a `UserError`."""
    try:
        yield from batches
    except UserError as error:  # of a loader process: the message is the last line of its traceback
        raise UserError(str(error).strip().rpartition("UserError: ")[2]) from error
    except RuntimeError as error:
        if "DataLoader" not in str(error):
            raise
        raise UserError(
            f"a loader process ended or did not answer ({' '.join(str(error).split())[:200]}): it may have run out "
            f"of memory or shared memory; the same command continues, with fewer {option} if it happens again"
        ) from error


def training_stream(
    dataset: Studies, collate: Callable[[Sequence[tuple[int, Sample]]], Any], loop: "LoopConfig"
) -> Callable[[int], Iterator[Any]]:
    """Return a function that opens this process' batches at a position, with the settings of ``loop``."""

    def open_at(position: int) -> Iterator[Any]:
        return sample_stream(
            dataset,
            collate,
            batch_size=loop.batch_size,
            seed=loop.seed,
            position=position,
            rank=current_rank(),
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
    """Yield this rank's batches of one pass in the shards' order, without shuffling; the last may be smaller.

    Sample i goes to rank ``i % world``; ``limit`` bounds the samples of all ranks together.
    """
    count = len(dataset) if limit is None else min(limit, len(dataset))
    indices = range(rank, count, world)
    for begin in range(0, len(indices), batch_size):
        yield collate([(number, dataset[number]) for number in indices[begin : begin + batch_size]])
