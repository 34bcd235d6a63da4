"""Ingest writes the same bytes after kills at any moment, with any number of workers, and on a cluster."""

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

STUDIES, STUDIES_PER_SHARD = 48, 2


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms with two damaged files, so that rejects are compared too."""
    root = tmp_path_factory.mktemp("phantom") / "tree"
    write_archive(PhantomConfig(out=root, studies=STUDIES, seed=3, size=48))
    for path in sorted(root.rglob("*.dcm"))[5:7]:
        path.write_bytes(path.read_bytes()[:-100])
    return root


@pytest.fixture(scope="module")
def uninterrupted(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], float]:
    """Return the files of an uninterrupted run, and its duration as a command."""
    out = tmp_path_factory.mktemp("uninterrupted") / "out"
    load_key(_config(archive, out).key_file)  # created before timing starts
    begun = time.monotonic()
    assert _start(archive, out, workers=1).wait() == 0
    return contents(out), time.monotonic() - begun


def _config(archive: Path, out: Path, **changes: object) -> IngestConfig:
    options = {"source": "phantom", "root": str(archive), "out": str(out), "size": 48, "workers": 1}
    return IngestConfig(**{**options, "shard_studies": STUDIES_PER_SHARD, **changes})  # type: ignore[arg-type]


def _start(archive: Path, out: Path, workers: int) -> subprocess.Popen[bytes]:
    """Start ingest as a command, in a separate process group."""
    command = [
        sys.executable,
        "-c",
        "import sys; from medunifier.data.ingest.command import main; main(sys.argv[1:])",
    ]
    command += ["--source=phantom", f"--root={archive}", f"--out={out}", "--size=48", f"--workers={workers}"]
    command += [f"--shard_studies={STUDIES_PER_SHARD}"]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _kill(process: subprocess.Popen[bytes]) -> bool:
    """Kill it and its workers; return whether it was still running."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_run_killed_twice_resumes_to_the_same_bytes(
    archive: Path, uninterrupted: tuple[dict[str, str], float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    for shards, workers in ((2, 1), (9, 2)):
        process = _start(archive, out, workers)
        _wait_for(lambda shards=shards: len(list(out.glob("*.tar"))) >= shards)
        assert _kill(process), "it finished before it was killed"
        assert not (out / "manifest.json").exists()
    # Isolated decoding is slower, and only for images that crash their decoder.
    monkeypatch.setattr("medunifier.data.images.isolated.IsolatedReader.read", None)
    ingest(_config(archive, out))
    assert contents(out) == uninterrupted[0]


@pytest.mark.slow
def test_killed_at_ten_random_moments(
    archive: Path, uninterrupted: tuple[dict[str, str], float], tmp_path: Path
) -> None:
    """Ten output folders, each run killed once at a random time between start and end, then resumed."""
    random, kills = Random(20), 0
    expected, seconds = uninterrupted
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
    archive: Path, uninterrupted: tuple[dict[str, str], float], tmp_path: Path
) -> None:
    """Repeated kills of one run, as by a scheduler's time limit."""
    out, random = tmp_path / "out", Random(21)
    for number in range(10):
        before = len(list(out.glob("*.tar")))
        process = _start(archive, out, workers=1 + number % 2)
        _wait_for(lambda before=before: len(list(out.glob("*.tar"))) > before)
        time.sleep(random.uniform(0, 0.01))
        assert _kill(process), f"run {number} finished before it was killed"
    ingest(_config(archive, out))
    assert contents(out) == uninterrupted[0]


def test_killed_while_writing_the_plan_or_before_the_final_cleanup(
    archive: Path, uninterrupted: tuple[dict[str, str], float], tmp_path: Path
) -> None:
    """Moments too short to hit by chance: the plan partly written; the manifest written, the cleanup not yet done."""
    out = tmp_path / "out"
    (out / ".ingest").mkdir(parents=True)
    (out / ".ingest" / ".partial-1-plan.json").write_text('{"pl')
    ingest(_config(archive, out))
    assert contents(out) == uninterrupted[0]
    (out / ".ingest").mkdir()
    (out / ".ingest" / "train-000000.tar.json").write_text("{}")
    (out / ".partial-1-train-000000.tar").write_text("half")
    ingest(_config(archive, out))
    assert contents(out) == uninterrupted[0]


def test_a_dask_cluster_of_two_processes_writes_the_same_bytes(
    archive: Path, uninterrupted: tuple[dict[str, str], float], tmp_path: Path
) -> None:
    distributed = pytest.importorskip("distributed", reason="Dask is not installed (the extra 'cluster')")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None
    ) as cluster:
        ingest(_config(archive, tmp_path / "out", cluster=cluster.scheduler_address))
    assert contents(tmp_path / "out") == uninterrupted[0]
