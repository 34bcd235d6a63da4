"""Two gloo processes read every sample once per epoch, and another layout resumes the same stream."""

from pathlib import Path

import torch.distributed as dist
import torch.multiprocessing as mp

from medunifier.data.shards import loader
from medunifier.data.shards.dataset import ShardDataset
from medunifier.data.shards.loader import sample_stream, training_stream
from medunifier.shared.training.loop import LoopConfig
from tests.data.shards.test_dataset import write_folder

SAMPLES, BATCH, STEPS = 13, 2, 10  # an epoch is not a multiple of the global batch


def pairs(samples):
    return [(position, sample.info["n"]) for position, sample in samples]


def _worker(rank: int, folder: Path) -> None:
    """Read a few steps, then reopen the stream at the global position with another number of workers."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    dataset = ShardDataset(folder / "shards", "train")
    batches = []
    for begin, end, workers in ((0, 4, 0), (4, STEPS, rank + 1)):
        loop = LoopConfig(batch_size=BATCH, seed=5, workers=workers)
        stream = training_stream(dataset, pairs, loop)(begin * loop.global_batch())
        batches += [next(stream) for _ in range(begin, end)]
    gathered = [None, None]
    dist.all_gather_object(gathered, batches)
    dist.barrier()
    dist.destroy_process_group()
    if rank == 0:
        (folder / "positions").write_text(repr(gathered))


def test_two_processes_read_each_epoch_once_and_one_process_resumes_their_stream(tmp_path):
    (tmp_path / "shards").mkdir()
    write_folder(tmp_path / "shards", counts=(6, 4, 3))
    context = mp.get_context("fork")  # spawn would spend the time importing torch
    processes = [context.Process(target=_worker, args=(rank, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
        assert process.exitcode == 0
    first, second = eval((tmp_path / "positions").read_text())
    read = [entry for step in zip(first, second, strict=True) for batch in step for entry in batch]
    assert [position for position, _ in read] == list(range(2 * BATCH * STEPS))
    numbers = [number for _, number in read]
    epochs = [numbers[begin : begin + SAMPLES] for begin in range(0, len(numbers) - SAMPLES + 1, SAMPLES)]
    assert len(epochs) == 3 and all(sorted(epoch) == list(range(SAMPLES)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3  # each in a different order

    # One process with two workers resumes in the middle of an epoch, with another batch size.
    dataset = ShardDataset(tmp_path / "shards", "train")
    position = 2 * BATCH * 5
    stream = sample_stream(dataset, pairs, batch_size=3, seed=5, position=position, workers=2)
    continued = [entry for _ in range(6) for entry in next(stream)]
    assert continued == read[position : position + 18]


def test_no_more_loader_processes_than_cores_and_no_warning(tmp_path, monkeypatch, recwarn):
    write_folder(tmp_path, counts=(6, 4, 3))
    monkeypatch.setattr(loader, "usable_cores", lambda: 1)
    stream = sample_stream(ShardDataset(tmp_path, "train"), pairs, batch_size=2, seed=5, workers=3)
    before = len(mp.active_children())
    next(stream)
    assert len(mp.active_children()) - before <= 1
    assert not [warning for warning in recwarn if "worker" in str(warning.message)]
