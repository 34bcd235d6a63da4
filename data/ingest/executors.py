"""Run independent jobs in local processes or on a Dask cluster, through one interface."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from medunifier.shared.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")


class WorkerDied(UserError):
    """A worker process died during a job, locally or (repeatedly) on the cluster; finished jobs are kept."""


@contextmanager
def open_executor(workers: int, cluster: str = "") -> Iterator[Executor]:
    """Open a pool of local processes, or of the workers of the Dask scheduler at ``cluster`` (``tcp://host:port``).

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
    """Yield results as they complete. The first failure cancels jobs that have not started.

    Raises:
        WorkerDied: if a worker process died, for example out of memory or in a crashing codec.
    """
    futures: list[Future[Result]] = [executor.submit(function, job) for job in jobs]
    try:
        for future in as_completed(futures):
            yield future.result()
    except Exception as error:
        # Dask's exception is recognized by name, since Dask is optional.
        if not isinstance(error, BrokenProcessPool) and type(error).__name__ != "KilledWorker":
            raise
        raise WorkerDied(
            "a worker process died, probably out of memory: try fewer --workers; the same command continues"
        ) from None
    finally:
        for future in futures:
            future.cancel()
