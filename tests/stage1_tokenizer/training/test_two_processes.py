"""Two processes equal one in float64, where no rounding hides a fault: losses, adaptive weight, codebook, weights.

In float32 the same steps differ by up to some 1e-3 in the adaptive weight once the discriminator trains: its gradient
is the small difference of large sums, whose order differs.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch import Tensor

from medunifier.shared.training.config import LoopConfig, OptimConfig
from medunifier.stage1_tokenizer.config import (
    DataConfig,
    DiscriminatorConfig,
    LossConfig,
    PerceptualConfig,
    SemanticConfig,
    SemanticLabelsConfig,
    SemanticReportConfig,
    Stage1Config,
    model_config,
)
from medunifier.stage1_tokenizer.losses.semantic.objectives import LabelBalance
from medunifier.stage1_tokenizer.training.studies import StudyImages
from medunifier.stage1_tokenizer.training.task import TokenizerTask
from tests.stage1_tokenizer.conftest import TINY, blobs
from tests.two_processes import two_processes

STEPS, STUDIES = 5, 8
TERMS = SemanticConfig(SemanticLabelsConfig(0.5, 0.5), SemanticReportConfig(0.5))
KINDS = ("cosine_vq", "ema_vq", "gumbel_vq")


def course(kind: str, rank: int, world: int) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """Figures of each training step on this rank's part of the batches, and the weights after the last."""
    AcceleratorState._reset_state(reset_partial_state=True)
    set_seed(0)
    quantizer: dict[str, Any] = {"kind": kind, "dead_code_interval": 2, "dead_code_threshold": 0.95}
    # The discriminator trains from the first step and counts from the second.
    adversary = DiscriminatorConfig(width=8, layers=1, norm="group", start=1, ramp=1, lecam_weight=0.1)
    config = Stage1Config(
        DataConfig("unused"),
        "unused",
        model=model_config(TINY | {"quantizer": quantizer}),
        loss=LossConfig(
            l2_weight=2.0,
            perceptual=PerceptualConfig("none"),
            gan_weight=0.5,
            discriminator=adversary,
            semantic=TERMS if kind == "cosine_vq" else SemanticConfig(),
        ),
        optim=OptimConfig(lr=1e-3, betas=(0.5, 0.9), warmup_steps=2),
        loop=LoopConfig(batch_size=STUDIES // world, steps=STEPS),
    )
    balance = LabelBalance(torch.full((14,), 2.0), torch.full((14,), 0.7))
    task = TokenizerTask(config, Accelerator(cpu=True), None, None, balance)
    figures = []
    for step in range(STEPS):
        images = torch.stack([torch.from_numpy(blobs(step * STUDIES + number)) for number in range(STUDIES)])
        numbers = torch.arange(STUDIES) + step
        labels = (numbers[:, None] + torch.arange(14)).remainder(3).double()
        batch = StudyImages(
            images[:, None].double() / 127.5 - 1,
            torch.where(labels == 2, float("nan"), labels),
            torch.stack([numbers % 5, 1 + numbers % 3], dim=1),  # equal reports and patients on both processes
            numbers % 3,
            numbers % 4,
        )
        own = StudyImages(*(field.chunk(world)[rank] for field in batch))
        figures.append({name: float(value) for name, value in task.step([own], step).items()})
    return figures, {name: value.clone() for name, value in task.average.module.state_dict().items()}


def all_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute what the product computes in float32, such as the lookup and the logits, in float64 too."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    torch.set_default_dtype(torch.float64)


def _worker(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    all_in_float64(pytest.MonkeyPatch())
    torch.save({kind: course(kind, rank, 2) for kind in KINDS}, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_equal_one_in_float64(tmp_path, monkeypatch):
    with two_processes(_worker, tmp_path):
        try:
            all_in_float64(monkeypatch)
            wholes = {kind: course(kind, 0, 1) for kind in KINDS}
        finally:
            torch.set_default_dtype(torch.float32)
            monkeypatch.undo()
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for kind, (figures, weights) in wholes.items():
        assert figures[1]["adaptive_weight"] > 0
        for step, whole in enumerate(figures):
            mine, other = first[kind][0][step], second[kind][0][step]
            assert mine.keys() == whole.keys()
            for name in whole.keys() - {"flop"}:  # an amount, not a mean
                mean = (mine[name] + other[name]) / 2
                assert mean == pytest.approx(whole[name], rel=1e-9, abs=1e-12), (kind, step, name)
        for name, weight in weights.items():
            torch.testing.assert_close(first[kind][1][name], weight, rtol=1e-8, atol=1e-10, msg=f"{kind} {name}")
            assert torch.equal(first[kind][1][name], second[kind][1][name]), (kind, name)
