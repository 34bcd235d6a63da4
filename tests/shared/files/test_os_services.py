"""What a platform, container or file system lacks is replaced, or named in one line."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from medunifier.shared.artifacts import PARTIAL_PREFIX, atomic_file, remove_partial
from medunifier.shared.command import run_command
from medunifier.shared.errors import UserError
from medunifier.shared.files import os_services


def test_commands_run_without_posix_modules_and_core_masks(tmp_path):
    program = """
import os, sys
sys.modules["fcntl"] = sys.modules["resource"] = None
del os.sched_getaffinity
from medunifier.__main__ import main
from medunifier.shared.files.os_services import peak_memory, usable_cores
assert usable_cores() == os.cpu_count() and peak_memory() == 0
def run(*arguments):
    sys.argv = ["medunifier", *arguments]
    assert not main(), arguments
run("phantom", "--out", "tree", "--studies", "4", "--size", "32", "--workers", "1")
run("ingest", "--source", "phantom", "--root", "tree", "--out", "shards", "--size", "32", "--workers", "1",
    "--key_file", "key", "--duplicates", "ignore")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "shards" / "manifest.json").is_file()


def test_without_locks_a_partial_file_that_may_be_alive_stays(tmp_path, monkeypatch):
    with atomic_file(tmp_path / "a.json") as partial:
        monkeypatch.setattr(os_services, "fcntl", None)
        remove_partial(tmp_path)
        assert partial.exists()
        partial.write_text("{}")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]
    monkeypatch.undo()
    (tmp_path / f"{PARTIAL_PREFIX}0-a.json").touch()
    remove_partial(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_a_refused_memory_limit_is_skipped(monkeypatch):
    def refuse(*_):
        raise ValueError("current limit exceeds maximum limit")  # macOS

    monkeypatch.setattr(os_services.resource, "setrlimit", refuse)
    os_services.limit_memory(2**32)


def test_a_memory_limit_never_exceeds_the_hard_limit(monkeypatch):
    limits = []
    monkeypatch.setattr(os_services.resource, "getrlimit", lambda _: (2**30, 2**31))
    monkeypatch.setattr(os_services.resource, "setrlimit", lambda _, pair: limits.append(pair))
    os_services.limit_memory(2**32)
    os_services.limit_memory(2**30)
    assert limits == [(2**31, 2**31), (2**30, 2**30)]


def test_a_missing_home_folder_is_named(monkeypatch):
    def no_home(*_):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(Path, "expanduser", no_home)
    for function, arguments in ((os_services.home_folder, ()), (os_services.expand_home, ("~/key",))):
        with pytest.raises(UserError, match="HOME"):
            function(*arguments)


def test_peak_memory_is_in_bytes():
    assert 2**20 < os_services.peak_memory() < 2**45


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_console_in_another_encoding_shows_every_error(monkeypatch, encoding):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(shown, encoding=encoding, write_through=True))

    def fail(_):
        raise UserError("image → codes … 放射線")

    assert run_command(fail, []) == 1
    assert shown.getvalue().startswith(b"error: image ")


def test_descriptors_and_files_are_both_locked(tmp_path):
    path = tmp_path / "lock"
    with open(path, "wb") as first, open(path, "rb") as second:
        assert os_services.try_lock(first, without_locks=False)
        assert not os_services.try_lock(second.fileno(), without_locks=True)
    descriptor = os.open(path, os.O_RDONLY)
    os_services.lock(descriptor)  # free again
    os.close(descriptor)
