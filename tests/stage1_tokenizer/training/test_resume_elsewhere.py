"""A run that continues on another number of processes: the same samples, images and noise, and the same course."""

import os
from pathlib import Path

import pytest
import torch

from medunifier.shared.command import run_command
from medunifier.stage1_tokenizer.train import main
from medunifier.stage1_tokenizer.training.task import TokenizerTask
from tests.stage1_tokenizer.training.test_train import losses, write_config
from tests.two_processes import two_processes

# Stream, checkpoint and refusal are the code of both stages, which stage 2's test_train.py checks in the default run;
# test_two_processes.py and test_batches.py check that two processes or micro-batches equal one.
pytestmark = [pytest.mark.usefixtures("no_curves"), pytest.mark.slow]

# The discriminator starts late, since the adaptive weight depends on the micro-batch. Gumbel noise is random.
OPTIONS = ["--optim.schedule", "constant", "--loss.discriminator.start", "100", "--model.quantizer.kind", "gumbel_vq",
           "--loop.checkpoint_every", "3", "--loop.validate_every", "100"]  # fmt: skip


def run(config: Path, steps: int, batch_size: int, accumulation: int, patch: pytest.MonkeyPatch) -> list:
    """Train to ``steps`` and return this process' images, a list of micro-batches a step."""
    seen = []
    honest = TokenizerTask.step
    patch.setattr(TokenizerTask, "step", lambda self, parts, step: seen.append(parts) or honest(self, parts, step))
    split = ["--loop.batch_size", str(batch_size), "--loop.accumulation", str(accumulation)]
    assert run_command(main, ["--config", str(config), *OPTIONS, *split, "--loop.steps", str(steps)]) == 0
    patch.undo()
    return seen


def _worker(rank: int, port: int, folder: Path, config: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.save(run(config, 3, batch_size=2, accumulation=3, patch=pytest.MonkeyPatch()), folder / f"{rank}.pt")


def test_two_processes_of_three_micro_batches_continue_as_one_of_four(image_shards, tmp_path, monkeypatch, capsys):
    moved = write_config(tmp_path, image_shards, tmp_path / "moved")
    with two_processes(_worker, tmp_path, moved):
        whole = write_config(tmp_path, image_shards, tmp_path / "whole")
        expected = run(whole, 6, batch_size=12, accumulation=1, patch=monkeypatch)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    before = [[part for pair in zip(*step, strict=True) for part in pair] for step in zip(*ranks, strict=True)]

    # Half the global batch: refused before anything is written.
    capsys.readouterr()
    settings = (tmp_path / "moved" / "config.yaml").read_bytes()
    half = ["--config", str(moved), *OPTIONS, "--loop.batch_size", "2", "--loop.accumulation", "3"]
    assert run_command(main, half) == 1
    error = capsys.readouterr().err.removeprefix("loading …\n").strip()
    assert "--loop.batch_size 2 --loop.accumulation 6" in error and error.count("\n") == 0
    assert (tmp_path / "moved" / "config.yaml").read_bytes() == settings

    after = run(moved, 6, batch_size=3, accumulation=4, patch=monkeypatch)
    assert len(before) == len(after) == 3
    for step, (parts, images) in enumerate(zip(before + after, expected, strict=True)):
        assert torch.equal(torch.cat(parts), torch.cat(images)), step
    mine, theirs = ([line for line in losses(tmp_path / name) if "l1" in line] for name in ("moved", "whole"))
    assert [line["step"] for line in mine] == [line["step"] for line in theirs] == [1, 2, 3, 4, 5, 6]
    for line, other in zip(mine, theirs, strict=True):
        for name in ("l1", "l2", "divergence"):
            assert line[name] == pytest.approx(other[name], rel=2e-5), (line["step"], name)
