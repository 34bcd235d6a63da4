"""A checkpoint that does not fit: the message names the full disk, and there is nothing half-written."""

import resource
import subprocess
import sys

import pytest
import torch

from medunifier.shared.errors import UserError
from medunifier.shared.training.checkpoints import Checkpoints, DataPosition

# PyTorch's writer and that of safetensors, as `save_state` calls both.
SAVE = """
import sys, torch
from safetensors.torch import save_file
from medunifier.shared.training.checkpoints import Checkpoints, DataPosition
from medunifier.shared.command import run_command

def write(folder):
    weights = {"weight": torch.zeros(1_000_000)}
    torch.save(weights, folder / "state.pkl") if sys.argv[2] == "torch" else save_file(weights, folder / "state")

sys.exit(run_command(lambda folder: Checkpoints(folder[0]).save(7, write, DataPosition(56, 8)), sys.argv[1:]))
"""

# In a separate mount namespace, so that only this process sees the small disk and it is removed on exit.
SCRIPT = """
mount -t tmpfs -o size=1m none "$1" || exit 9
for writer in torch safetensors; do
    "$2" -c "$3" "$1" $writer
    echo "$writer $? $(ls -A "$1")"
done
mount -o remount,size=9m "$1"
"$2" -c "$3" "$1" torch
echo "roomy $? $(ls -A "$1")"
"""


def test_a_full_disk_is_named(root, tmp_path):
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets no test mount a small disk (unshare -rm)")
    command = ["unshare", "-rm", "bash", "-c", SCRIPT, "bash", str(tmp_path), sys.executable, SAVE]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert result.stdout.splitlines() == ["torch 1 ", "safetensors 1 ", "roomy 0 step-7"], result.stderr
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
