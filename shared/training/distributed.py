"""Collective operations of both stages; each is the identity on a single process."""

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Return the number of processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the rank of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main() -> bool:
    """Return True on the process that writes files and prints."""
    return rank() == 0


def on_cpu() -> bool:
    """Whether this machine has no accelerator.

    Pass it to Accelerate as ``cpu``: without it, processes on CPUs that a launcher started do not find each other,
    and each takes itself for the main one.
    """
    return not torch.accelerator.is_available()


def warn_if_alone() -> None:
    """Print a warning if the launcher requested several processes and this one runs alone.

    ``accelerate launch --cpu --num_processes 2`` starts one (Accelerate 1.15, without ``mpirun``). It sets no
    process count, but a rendezvous address, which it sets only for several processes. Call this after Accelerate
    is set up.
    """
    if world_size() > 1:
        return
    count = os.environ.get("WORLD_SIZE")
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    if count not in (None, "1") or (count is None and launched):
        print(
            f"warning: the launcher requested {count or 'several'} processes, but this one runs alone, so the "
            "global batch is smaller. On CPUs start them with: accelerate launch --config_file "
            "configs/accelerate/ddp.yaml --num_processes N …",
            flush=True,
        )


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        dist.barrier()


def collective_device() -> torch.device:
    """Return the device whose tensors the collective operations take: the current GPU, or the CPU without one."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def all_reduce_sum(value: Tensor) -> Tensor:
    """Return the sum over processes, as a new tensor without gradient."""
    value = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(value)
    return value


def all_reduce_max(value: Tensor) -> Tensor:
    """Return the maximum over processes, as a new tensor without gradient."""
    value = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return value


def broadcast_object(value: Any) -> Any:
    """Return the ``value`` of the first process, on all processes."""
    if world_size() == 1:
        return value
    box = [value if is_main() else None]
    dist.broadcast_object_list(box)
    return box[0]


def gather_objects(value: Any) -> list[Any]:
    """Return the ``value`` of every process in rank order, on all processes."""
    if world_size() == 1:
        return [value]
    box: list[Any] = [None] * world_size()
    dist.all_gather_object(box, value)
    return box


def all_gather(value: Tensor) -> Tensor:
    """Return (world * B, …) from (B, …) of every process, in rank order, without gradient."""
    if world_size() == 1:
        return value.detach()
    parts = [torch.empty_like(value) for _ in range(world_size())]
    dist.all_gather(parts, value.detach().contiguous())
    return torch.cat(parts)
