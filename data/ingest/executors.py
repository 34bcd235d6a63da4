"""Where independent jobs run: processes of this machine, or a Dask cluster, behind one interface."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from medunifier.shared.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")


class WorkerDied(UserError):
    """A process ended in the middle of a job, here or (several times) on the cluster; what was finished is kept."""


@contextmanager
def open_executor(workers: int, cluster: str = "") -> Iterator[Executor]:
    """Processes of this machine, or the workers of the Dask scheduler at ``cluster`` (``tcp://host:port``).

    Raises:
        UserError: if Dask is not installed or the scheduler does not answer.
    """
    if not cluster:
        with ProcessPoolExecutor(workers) as pool:
            yield pool
        return
    try:
        from distributed import Client
    except ImportError:
        raise UserError("--cluster needs Dask: pip install 'medunifier[cluster]'") from None
    try:
        client = Client(cluster, timeout="20s")
    except (OSError, ValueError) as error:
        raise UserError(f"no Dask scheduler answers at {cluster}: {error}") from None
    with client:
        yield client.get_executor(pure=False)


def run_jobs(function: Callable[[Job], Result], jobs: Iterable[Job], executor: Executor) -> Iterator[Result]:
    """Results as they come. The first failure cancels what has not begun.

    Raises:
        WorkerDied: out of memory, say, or of a codec that crashed.
    """
    futures: list[Future[Result]] = [executor.submit(function, job) for job in jobs]
    try:
        for future in as_completed(futures):
            yield future.result()
    except Exception as error:
        # Dask's own exception is told by its name, since Dask need not be installed.
        if not isinstance(error, BrokenProcessPool) and type(error).__name__ != "KilledWorker":
            raise
        raise WorkerDied(
            "a worker process died, probably for want of memory: try fewer --workers; the same command continues"
        ) from None
    finally:
        for future in futures:
            future.cancel()
