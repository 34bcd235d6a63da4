"""Collectives with gradients: two gloo processes equal one."""

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from shared.distributed import all_gather, all_gather_with_gradient, all_reduce_sum, gather_objects


def _worker(rank: int, port: int, queue) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    full = torch.arange(8.0).view(4, 2)
    mine = full[2 * rank : 2 * rank + 2].clone().requires_grad_()
    gathered = all_gather_with_gradient(mine)
    (gathered.T @ gathered).sum().backward()
    names = gather_objects(f"rank {rank}")
    total = all_reduce_sum(torch.tensor([float(rank + 1)]))
    queue.put((rank, gathered.detach().tolist(), mine.grad.tolist(), names, total.item(), all_gather(mine).tolist()))
    dist.barrier()
    dist.destroy_process_group()


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_gathered_rows_and_their_gradients_equal_one_process():
    context = mp.get_context("spawn")
    queue = context.Queue()
    port = free_port()
    workers = [context.Process(target=_worker, args=(rank, port, queue)) for rank in range(2)]
    for worker in workers:
        worker.start()
    results = sorted(queue.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join(timeout=60)
    full = torch.arange(8.0).view(4, 2).requires_grad_()
    (full.T @ full).sum().backward()
    for rank, gathered, gradient, names, total, again in results:
        assert gathered == again == full.tolist()
        # Both processes compute the whole loss: the sum of their gradients is twice the single one (DDP halves it).
        assert gradient == (2 * full.grad[2 * rank : 2 * rank + 2]).tolist()
        assert names == ["rank 0", "rank 1"]
        assert total == 3.0
