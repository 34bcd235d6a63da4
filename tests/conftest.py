"""Shared by all tests: where real data may lie, few threads, a small tokenizer and model made on the spot."""

import os
import sys
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


@pytest.fixture(autouse=True)
def _own_process_state():
    """Remove the accelerator before and after, and restore torch's global settings, so that tests pass in any order.

    A process has one accelerator: a second one with another precision is an error.
    """
    cudnn, matmul, dynamo = torch.backends.cudnn, torch.backends.cuda.matmul, sys.modules.get("torch._dynamo.config")
    settings = [(cudnn, "benchmark"), (cudnn, "allow_tf32"), (matmul, "allow_tf32"), (dynamo, "recompile_limit")]
    before = [(place, name, getattr(place, name)) for place, name in settings if place is not None]
    dtype = torch.get_default_dtype()
    _remove_accelerator()
    yield
    _remove_accelerator()
    torch.set_default_dtype(dtype)
    for place, name, value in before:
        setattr(place, name, value)


def _remove_accelerator() -> None:
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


@pytest.fixture
def no_curves(monkeypatch):
    """A training plots no curves: matplotlib takes longer than the steps of a tiny model."""
    monkeypatch.setattr("medunifier.shared.training.loop.save_curves", lambda run: None)


@pytest.fixture(autouse=True, scope="session")
def _threads_stay():
    """Commands leave the number of threads alone: by default they set one a core, also for the tests after them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "set_num_threads", lambda threads: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def _own_key(tmp_path_factory):
    """No test touches the user's own pseudonym key."""
    home = tmp_path_factory.mktemp("home")
    old = os.environ.get("HOME")
    os.environ["HOME"] = str(home)
    yield
    if old is not None:
        os.environ["HOME"] = old
