"""Collectives: what two gloo processes see of each other."""

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from shared.distributed import all_gather, all_reduce_max, all_reduce_sum, gather_objects


def _worker(rank: int, port: int, queue) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    full = torch.arange(8.0).view(4, 2)
    mine = full[2 * rank : 2 * rank + 2].clone().requires_grad_()
    gathered = all_gather(mine)
    names = gather_objects(f"rank {rank}")
    total = all_reduce_sum(torch.tensor([float(rank + 1)]))
    largest = all_reduce_max(torch.tensor([float(rank + 1)]))
    queue.put((rank, gathered.tolist(), gathered.requires_grad, names, total.item(), largest.item()))
    dist.barrier()
    dist.destroy_process_group()


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_gathered_rows_sums_and_objects_are_the_same_on_all():
    context = mp.get_context("spawn")
    queue = context.Queue()
    port = free_port()
    workers = [context.Process(target=_worker, args=(rank, port, queue)) for rank in range(2)]
    for worker in workers:
        worker.start()
    results = sorted(queue.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join(timeout=60)
    assert [rank for rank, *_ in results] == [0, 1]
    for _, gathered, alive, names, total, largest in results:
        assert gathered == torch.arange(8.0).view(4, 2).tolist() and not alive
        assert names == ["rank 0", "rank 1"]
        assert total == 3.0 and largest == 2.0
