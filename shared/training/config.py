"""Configuration of the training loop and the optimizer, shared by both stages."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

CompileSetting = bool | Literal["auto"]
"""Whether to use torch.compile; auto: on a GPU."""


def use_compile(setting: CompileSetting, device: "torch.device | str") -> bool:
    """Return whether to compile for ``device``."""
    return str(device).startswith("cuda") if setting == "auto" else setting


@dataclass(frozen=True)
class LoopConfig:
    """Length of the training, logging, validation and checkpoints."""

    steps: int = 10_000
    """Total optimizer steps."""
    batch_size: int = 16
    """Studies per micro-batch and process."""
    accumulation: int = 1
    """Micro-batches per optimizer step."""
    seed: int = 0
    """Seed of weight initialisation, data order and all sampling."""
    workers: int = 2
    """Loader processes per training process; 0 loads in the training process."""
    threads: int = 0
    """CPU threads per training process; 0 divides the cores among the processes of this machine."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """bf16: matrix products and convolutions in bfloat16; weights, losses and codebook lookup stay float32."""
    log_every: int = 10
    """Steps per line of metrics.jsonl, which holds means over these steps."""
    validate_every: int = 500
    """Steps between validations, which also write pictures; the last step always validates."""
    checkpoint_every: int = 500
    """Steps between checkpoints; a multiple of log_every."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints to keep."""

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch_size",
            "accumulation",
            "log_every",
            "validate_every",
            "checkpoint_every",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"loop.{name} must be at least 1, got {getattr(self, name)}")
        if self.checkpoint_every % self.log_every:
            raise ValueError(
                f"loop.checkpoint_every ({self.checkpoint_every}) must be a multiple of loop.log_every "
                f"({self.log_every}): a logged mean would otherwise span a resume"
            )

    def global_batch(self) -> int:
        """Return the studies per optimizer step over all processes."""
        from medunifier.shared.training.distributed import (
            world_size,  # here: who only reads a configuration should not wait for torch
        )

        return self.batch_size * self.accumulation * world_size()


# A resumed run may change these; any other change makes it another run.
MAY_CHANGE = (
    "run_dir",
    "loop.steps",
    "loop.batch_size",  # with loop.accumulation, if the global batch stays (checkpoints.check_global_batch)
    "loop.accumulation",
    "loop.workers",
    "loop.threads",
    "loop.validate_every",
    "loop.keep_checkpoints",
)


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer and learning rate schedule."""

    lr: float = 1e-4
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of the first and second moments of AdamW."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices (not of norms, biases, embeddings)."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warm-up."""
    min_lr_ratio: float = 0.1
    """Final learning rate of the cosine, as a fraction of the peak."""
    max_grad_norm: float = 1.0
    """Bound on the global gradient norm; 0 = no clipping."""

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"optim.lr must be positive, got {self.lr}")

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of ``step`` (from 0) out of ``steps``."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.lr
        fraction = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, fraction)))
        return self.lr * (self.min_lr_ratio + (1 - self.min_lr_ratio) * cosine)
