"""Collectives: what two gloo processes see of each other."""

import json
from pathlib import Path

import torch
import torch.distributed as dist

from medunifier.shared.training.distributed import all_gather, all_reduce_max, all_reduce_sum, gather_objects
from tests.two_processes import two_processes


def _worker(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    full = torch.arange(8.0).view(4, 2)
    mine = full[2 * rank : 2 * rank + 2].clone().requires_grad_()
    gathered = all_gather(mine)
    names = gather_objects(f"rank {rank}")
    total = all_reduce_sum(torch.tensor([float(rank + 1)]))
    largest = all_reduce_max(torch.tensor([float(rank + 1)]))
    seen = (gathered.tolist(), gathered.requires_grad, names, total.item(), largest.item())
    (folder / f"{rank}.json").write_text(json.dumps(seen))
    dist.barrier()
    dist.destroy_process_group()


def test_gathered_rows_sums_and_objects_are_the_same_on_all(tmp_path):
    with two_processes(_worker, tmp_path):
        pass
    for rank in range(2):
        gathered, alive, names, total, largest = json.loads((tmp_path / f"{rank}.json").read_text())
        assert gathered == torch.arange(8.0).view(4, 2).tolist() and not alive
        assert names == ["rank 0", "rank 1"]
        assert total == 3.0 and largest == 2.0
