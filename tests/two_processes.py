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


@contextmanager
def two_processes(worker: Callable[..., None], *arguments: Any) -> Iterator[None]:
    """Run ``worker(rank, port, *arguments)`` as ranks 0 and 1 beside the block; both must have ended well after it.

    They part from a server that has imported the worker's module: torch, which takes seconds, is imported once and
    not twice, and nothing that runs in this process (threads, a GPU) is copied into them.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([worker.__module__])
    port = free_port()
    workers = [context.Process(target=worker, args=(rank, port, *arguments)) for rank in range(2)]
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
