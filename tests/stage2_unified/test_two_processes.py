"""Two gloo processes with half the batch each equal one process: losses, gradients and drawn negatives."""

from dataclasses import fields
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from stage2_unified.sequences import StudyBatch
from tests.stage2_unified.conftest import make_batch, make_model


def half(batch: StudyBatch, rank: int, tokens: float) -> StudyBatch:
    """Rank's rows, padded to their own longest report."""
    mine = slice(rank * len(batch) // 2, (rank + 1) * len(batch) // 2)
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}
    rows = StudyBatch(**{name: v[mine] if isinstance(v, Tensor) else v for name, v in values.items()})
    rows.report = rows.report[:, : int(rows.report_length.max())]
    rows.report_tokens = tokens
    return rows


def _worker(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    batch = make_batch(rows=8, dropped=(1, 6))
    tokens = float((batch.report_length + 1).sum()) / 2
    model = torch.nn.parallel.DistributedDataParallel(make_model())
    losses = model(batch=half(batch, rank, tokens))
    losses["loss"].backward()
    gradients = {name: parameter.grad for name, parameter in model.module.named_parameters()}
    torch.save(({name: value.item() for name, value in losses.items()}, gradients), folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_equal_one_with_the_double_batch(tmp_path):
    context = mp.get_context("spawn")
    workers = [context.Process(target=_worker, args=(rank, tmp_path)) for rank in range(2)]
    for worker in workers:
        worker.start()
    model, batch = make_model(), make_batch(rows=8, dropped=(1, 6))
    losses = model(batch=batch)
    losses["loss"].backward()
    for worker in workers:
        worker.join(timeout=120)
        assert worker.exitcode == 0
    (first, gradients), (second, same) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name in ("contrast", "matching", "report", "image", "z", "loss"):
        assert (first[name] + second[name]) / 2 == pytest.approx(losses[name].item(), rel=1e-5), name
    for name, parameter in model.named_parameters():
        scale = parameter.grad.abs().max()
        assert (gradients[name] - parameter.grad).abs().max() <= 2e-5 * scale, name
        assert torch.equal(gradients[name], same[name])
