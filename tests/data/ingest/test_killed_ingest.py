"""Ingest killed at any moment and started again, by any number of workers, on a cluster: the same bytes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from medunifier.data.ingest.command import IngestConfig, ingest
from medunifier.data.ingest.pseudonyms import load_key
from medunifier.data.phantom.command import PhantomConfig, write_archive
from tests.files import contents

STUDIES, STUDIES_A_SHARD = 48, 2


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms, two of whose files are damaged, so that rejects are compared too."""
    root = tmp_path_factory.mktemp("phantom") / "tree"
    write_archive(PhantomConfig(out=root, studies=STUDIES, seed=3, size=48))
    for path in sorted(root.rglob("*.dcm"))[5:7]:
        path.write_bytes(path.read_bytes()[:-100])
    return root


@pytest.fixture(scope="module")
def undisturbed(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], float]:
    """What an undisturbed run writes, and how long it takes as a command."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    load_key(_config(archive, out).key_file)  # made before the clock runs
    begun = time.monotonic()
    assert _start(archive, out, workers=1).wait() == 0
    return contents(out), time.monotonic() - begun


def _config(archive: Path, out: Path, **changes: object) -> IngestConfig:
    options = {"source": "phantom", "root": str(archive), "out": str(out), "size": 48, "workers": 1}
    return IngestConfig(**{**options, "shard_studies": STUDIES_A_SHARD, **changes})  # type: ignore[arg-type]


def _start(archive: Path, out: Path, workers: int) -> subprocess.Popen[bytes]:
    """Ingest as a command, in a process group of its own."""
    command = [
        sys.executable,
        "-c",
        "import sys; from medunifier.data.ingest.command import main; main(sys.argv[1:])",
    ]
    command += ["--source=phantom", f"--root={archive}", f"--out={out}", "--size=48", f"--workers={workers}"]
    command += [f"--shard_studies={STUDIES_A_SHARD}"]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _kill(process: subprocess.Popen[bytes]) -> bool:
    """Ends it and its workers at once; whether it was still at work."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def _wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_killed_twice_and_started_again_it_writes_the_same_bytes(
    archive: Path, undisturbed: tuple[dict[str, str], float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    for shards, workers in ((2, 1), (9, 2)):
        process = _start(archive, out, workers)
        _wait_for(lambda shards=shards: len(list(out.glob("*.tar"))) >= shards)
        assert _kill(process), "it was faster than the killer"
        assert not (out / "manifest.json").exists()
    # Ten times slower, and for films that end their readers alone.
    monkeypatch.setattr("medunifier.data.ingest.shard_job.read_isolated", None)
    ingest(_config(archive, out))
    assert contents(out) == undisturbed[0]


@pytest.mark.slow
def test_killed_at_ten_random_moments(
    archive: Path, undisturbed: tuple[dict[str, str], float], tmp_path: Path
) -> None:
    """Ten folders, each killed once, anywhere from the start of the process to its end; then all of them finished."""
    random, kills = Random(20), 0
    expected, seconds = undisturbed
    for number in range(30):
        out = tmp_path / str(number)
        process = _start(archive, out, workers=1 + number % 2)
        time.sleep(random.uniform(0, seconds))
        if _kill(process):
            kills += 1
            ingest(_config(archive, out, workers=2 - number % 2))
        assert contents(out) == expected, f"run {number}"
        if kills == 10:
            return
    pytest.fail(f"only {kills} of 30 runs were killed before their end")


@pytest.mark.slow
def test_killed_ten_times_over_one_folder(
    archive: Path, undisturbed: tuple[dict[str, str], float], tmp_path: Path
) -> None:
    """As a queue's time limit does: again and again, each time a little further on."""
    out, random = tmp_path / "out", Random(21)
    for number in range(10):
        before = len(list(out.glob("*.tar")))
        process = _start(archive, out, workers=1 + number % 2)
        _wait_for(lambda before=before: len(list(out.glob("*.tar"))) > before)
        time.sleep(random.uniform(0, 0.01))
        assert _kill(process), f"run {number} was faster than the killer"
    ingest(_config(archive, out))
    assert contents(out) == undisturbed[0]


def test_killed_between_two_acts_of_its_beginning_or_end(
    archive: Path, undisturbed: tuple[dict[str, str], float], tmp_path: Path
) -> None:
    """Moments too short to be met by chance: the plan half written; the manifest there, the rest not yet removed."""
    out = tmp_path / "out"
    (out / ".ingest").mkdir(parents=True)
    (out / ".ingest" / ".partial-1-plan.json").write_text('{"pl')
    ingest(_config(archive, out))
    assert contents(out) == undisturbed[0]
    (out / ".ingest").mkdir()
    (out / ".ingest" / "train-000000.tar.json").write_text("{}")
    (out / ".partial-1-train-000000.tar").write_text("half")
    ingest(_config(archive, out))
    assert contents(out) == undisturbed[0]


def test_a_dask_cluster_of_two_processes_writes_the_same_bytes(
    archive: Path, undisturbed: tuple[dict[str, str], float], tmp_path: Path
) -> None:
    distributed = pytest.importorskip("distributed", reason="Dask is not installed (the extra 'cluster')")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None
    ) as cluster:
        ingest(_config(archive, tmp_path / "out", cluster=cluster.scheduler_address))
    assert contents(tmp_path / "out") == undisturbed[0]
