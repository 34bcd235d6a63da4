"""Two processes that talk over gloo, for what a launcher would start."""

import multiprocessing
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def parted(worker: Callable[..., None], *arguments: Any) -> Any:
    """Return a process, not started, that parts from a server which has imported torch and the training.

    The server starts with the first test that needs it. Nothing that runs in this process (threads, a GPU) is copied.
    """
    stages = ["stage1_tokenizer", *(["stage2_unified"] if "stage2" in worker.__module__ else [])]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*(f"medunifier.{stage}.training.run" for stage in stages), worker.__module__])
    return context.Process(target=worker, args=arguments)


@contextmanager
def two_processes(worker: Callable[..., None], *arguments: Any) -> Iterator[None]:
    """Run ``worker(rank, port, *arguments)`` as ranks 0 and 1 beside the block; both must succeed."""
    port = free_port()
    workers = [parted(worker, rank, port, *arguments) for rank in range(2)]
    for process in workers:
        process.start()
    try:
        yield
        for process in workers:
            process.join(timeout=120)
            assert process.exitcode == 0
    finally:
        for process in workers:
            process.kill()
