"""Launchers on a machine without accelerator: the processes find each other, or a warning says that there is one."""

import os
import subprocess
import sys

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from tests.two_processes import free_port

WORLD = """
from accelerate import PartialState
from medunifier.shared.training.distributed import on_cpu, rank, warn_if_alone, world_size
PartialState(cpu=on_cpu())
warn_if_alone()
print(f"rank {rank()} of {world_size()}\\n", end="", flush=True)  # in one write: two processes share the pipe
"""


def launch(root, *arguments):
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE", "MASTER"))}
    return subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--quiet", *map(str, arguments)],
        env=variables | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
    )


def test_the_launchers_files_leave_nothing_to_its_defaults(root, caplog):
    def warnings(*options):
        caplog.clear()
        _validate_launch_command(launch_command_parser().parse_args([*options, "train.py"]))
        return [entry.message for entry in caplog.records]

    files = sorted((root / "configs" / "accelerate").glob("*.yaml"))
    assert len(files) >= 3
    assert {path.stem: warnings("--config_file", str(path)) for path in files} == {path.stem: [] for path in files}
    assert "--num_machines" in warnings("--num_processes", "1")[0], "what the launcher says otherwise"


@pytest.mark.slow
def test_processes_that_are_missing_are_noticed(root, tmp_path):
    script = tmp_path / "world.py"
    script.write_text(WORLD)
    config = ["--config_file", root / "configs" / "accelerate" / "ddp.yaml", "--main_process_port", free_port()]
    for options, ranks, warned in (
        (["--cpu", "--num_processes", 2], ["rank 0 of 1"], True),
        (["--cpu", "--num_processes", 1], ["rank 0 of 1"], False),
        ([*config, "--num_processes", 2], ["rank 0 of 2", "rank 1 of 2"], False),
    ):
        result = launch(root, *options, script)
        lines = result.stdout.splitlines()
        assert sorted(line for line in lines if line.startswith("rank")) == ranks, result.stderr
        assert any(line.startswith("warning: ") for line in lines) == warned, options


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stage1_tokenizer/train.py", "stage2_unified/train.py"])
def test_both_trainings_warn(stage, root, tmp_path):
    options = ["--data.shards", tmp_path / "absent", "--run_dir", tmp_path / "run"]
    if "stage2" in stage:
        options += ["--tokenizer", tmp_path / "absent"]
    result = launch(root, "--cpu", "--num_processes", 2, root / stage, *options)
    assert [line for line in result.stdout.splitlines() if "runs alone" in line], result.stderr
    assert "absent" in result.stderr
