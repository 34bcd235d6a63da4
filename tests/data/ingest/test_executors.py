"""Executors on a cluster, with a fake Dask client; test_killed_ingest.py uses the real one."""

import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from medunifier.data.ingest.executors import WorkerDied, open_executor, run_jobs
from medunifier.shared.errors import UserError


class KilledWorker(Exception):
    """Like distributed.scheduler.KilledWorker: a job killed several workers."""


class Client:
    def __init__(self, address, timeout):
        if "nobody" in address:
            raise OSError("Timed out trying to connect")
        self.address = address

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def get_executor(self, pure):
        assert pure is False  # a repeated job must not return a cached result
        return ThreadPoolExecutor(2)


@pytest.fixture
def dask(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", SimpleNamespace(Client=Client))


def test_jobs_run_on_the_cluster(dask):
    with open_executor(1, "tcp://scheduler:8786") as pool:
        assert sorted(run_jobs(abs, [-3, 2, -1], pool)) == [1, 2, 3]


def test_a_job_that_kills_its_workers_raises_worker_died(dask):
    def die(_):
        raise KilledWorker("('run_shard_job', <WorkerState>)")

    with open_executor(1, "tcp://scheduler:8786") as pool, pytest.raises(WorkerDied, match="same command continues"):
        list(run_jobs(die, [1], pool))


def test_the_error_of_a_job_is_not_changed(dask):
    def refuse(_):
        raise UserError("disk full")

    with open_executor(1, "tcp://scheduler:8786") as pool, pytest.raises(UserError, match="^disk full$"):
        list(run_jobs(refuse, [1, 2, 3], pool))


def test_a_missing_scheduler_or_missing_dask_is_reported(dask, monkeypatch):
    with (
        pytest.raises(UserError, match="tcp://nobody:1"),
        open_executor(1, "tcp://nobody:1"),
    ):
        pass
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UserError, match=r"medunifier\[cluster\]"), open_executor(1, "tcp://scheduler:8786"):
        pass
