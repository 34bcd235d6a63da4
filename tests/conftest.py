"""Shared by all tests: where real data may lie, few threads, a small tokenizer and model made on the spot."""

import os
from pathlib import Path

# Two test processes on two cores: more threads than that only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture
def shared_data():
    """``shared_data("dicom/chest") -> Path`` of real files that are no part of the project; skips where absent."""

    def find(name: str) -> Path:
        path = SHARED_DATA / name
        if not path.exists():
            pytest.skip(f"the real data {name} is not on this machine")
        return path

    return find


@pytest.fixture(autouse=True)
def _one_seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _own_key(tmp_path_factory):
    """No test touches the user's own pseudonym key."""
    home = tmp_path_factory.mktemp("home")
    old = os.environ.get("HOME")
    os.environ["HOME"] = str(home)
    yield
    if old is not None:
        os.environ["HOME"] = old
