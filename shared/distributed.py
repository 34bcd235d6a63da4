"""The few collective operations that both stages need, each the identity on a single process."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of processes of this training; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main() -> bool:
    """True on the one process that writes files and speaks."""
    return rank() == 0


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        dist.barrier()


def all_reduce_sum(value: Tensor) -> Tensor:
    """Sum over processes, as a new tensor without gradient."""
    value = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(value)
    return value


def all_reduce_max(value: Tensor) -> Tensor:
    """Largest over processes, as a new tensor without gradient."""
    value = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return value


def broadcast_object(value: Any) -> Any:
    """The first process' ``value``, on all."""
    if world_size() == 1:
        return value
    box = [value if is_main() else None]
    dist.broadcast_object_list(box)
    return box[0]


def gather_objects(value: Any) -> list[Any]:
    """Every process' ``value``, in the order of ranks, on all."""
    if world_size() == 1:
        return [value]
    box: list[Any] = [None] * world_size()
    dist.all_gather_object(box, value)
    return box


def all_gather(value: Tensor) -> Tensor:
    """(B, …) of every process -> (world · B, …), in the order of ranks, without gradient."""
    if world_size() == 1:
        return value.detach()
    parts = [torch.empty_like(value) for _ in range(world_size())]
    dist.all_gather(parts, value.detach().contiguous())
    return torch.cat(parts)


class _AllGatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:  # type: ignore[override]
        ctx.rows = len(value)
        return all_gather(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        # Every process holds a copy of the gathered rows and a gradient for each; the true one is their sum.
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        start = rank() * ctx.rows
        return gradient[start : start + ctx.rows]


def all_gather_with_gradient(value: Tensor) -> Tensor:
    """As :func:`all_gather`, and the gradient of every process' copy flows back to the row's owner, summed.

    DDP then divides by the number of processes; a loss that every process computes in whole over the
    gathered batch therefore comes out as on a single process with the whole batch.
    """
    return value if world_size() == 1 else _AllGatherWithGradient.apply(value)  # type: ignore[no-any-return]
