"""A checkpoint that does not fit: the message names the full disk, and there is nothing half-written."""

import resource
import subprocess
import sys

import pytest
import torch

from medunifier.shared.errors import UserError
from medunifier.shared.training.checkpoints import Checkpoints, DataPosition

# PyTorch's writer and that of safetensors, as `save_state` calls both; the disk is a small one, then a larger one.
SAVE = """
import os, subprocess, sys, torch
from safetensors.torch import save_file
from medunifier.shared.training.checkpoints import Checkpoints, DataPosition
from medunifier.shared.command import run_command

WRITERS = {"torch": lambda w, folder: torch.save(w, folder / "state.pkl"),
           "safetensors": lambda w, folder: save_file(w, folder / "state")}

def save(name):
    def write(folder):
        WRITERS[name]({"weight": torch.zeros(1_000_000)}, folder)
    code = run_command(lambda given: Checkpoints(given[0]).save(7, write, DataPosition(56, 8)), [sys.argv[1]])
    print(name, code, *os.listdir(sys.argv[1]))

save("torch"), save("safetensors")
subprocess.run(["mount", "-o", "remount,size=9m", sys.argv[1]], check=True)
save("torch")
"""

# In a separate mount namespace, so that only this process sees the small disk and it is removed on exit.
SCRIPT = 'mount -t tmpfs -o size=1m none "$1" && exec "$2" -c "$3" "$1"'


def test_a_full_disk_is_named(root, tmp_path):
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets no test mount a small disk (unshare -rm)")
    command = ["unshare", "-rm", "bash", "-c", SCRIPT, "bash", str(tmp_path), sys.executable, SAVE]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert result.stdout.splitlines() == ["torch 1", "safetensors 1", "torch 0 step-7"], result.stderr
    errors = result.stderr.strip().splitlines()
    assert len(errors) == 2, errors
    for line in errors:
        assert line.startswith("error: ") and "step 7" in line and "No space left on device" in line, line


def test_a_file_size_limit_is_not_taken_for_a_full_disk(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        with pytest.raises(UserError, match="file size limit") as caught:
            Checkpoints(tmp_path).save(
                7, lambda folder: torch.save(torch.zeros(1_000_000), folder / "state.pkl"), DataPosition(56, 8)
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "No space left" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
