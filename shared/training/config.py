"""Settings of the training loop and of its optimizer, which both stages have in their configurations."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class LoopConfig:
    """How long a training runs and what it leaves on the way."""

    steps: int = 10_000
    """Optimizer steps in all."""
    batch_size: int = 16
    """Studies a micro-batch and process."""
    accumulation: int = 1
    """Micro-batches a step."""
    seed: int = 0
    """Of the weights, the order of the data and everything drawn."""
    workers: int = 2
    """Loader processes a training process; 0 reads in the process itself."""
    threads: int = 0
    """CPU threads of a training process; 0 shares the cores among the processes of this machine."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """bf16 runs the heavy arithmetic in bfloat16; weights, losses and codebook lookup stay in float32."""
    log_every: int = 10
    """Steps between two lines of metrics.jsonl, each the mean over those steps."""
    validate_every: int = 500
    """Steps between two validations, with pictures; the last step always validates."""
    checkpoint_every: int = 500
    """Steps between two checkpoints; a multiple of log_every."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay."""

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
                f"({self.log_every}): a logged mean would otherwise straddle a resume"
            )

    def global_batch(self) -> int:
        """Studies a step over all processes."""
        from medunifier.shared.training.distributed import (
            world_size,  # here: who only reads a configuration should not wait for torch
        )

        return self.batch_size * self.accumulation * world_size()


# A run may be continued with another value of these; anything else would make it another run.
MAY_CHANGE = (
    "run_dir",
    "loop.steps",
    "loop.batch_size",  # these two as long as the global batch stays the same: medunifier.shared.training.loop.check_global_batch
    "loop.accumulation",
    "loop.workers",
    "loop.threads",
    "loop.validate_every",
    "loop.keep_checkpoints",
)


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its schedule."""

    lr: float = 1e-4
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of AdamW's two moments."""
    weight_decay: float = 0.0
    """Decoupled; on matrices alone (no norms, biases, embeddings)."""
    warmup_steps: int = 100
    """Steps from 0 to the peak, linear."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up."""
    min_lr_ratio: float = 0.1
    """Where the cosine ends, as a share of the peak."""
    max_grad_norm: float = 1.0
    """Bound on the norm of the whole gradient; 0 = none."""

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"optim.lr must be positive, got {self.lr}")

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of ``step`` (from 0) out of ``steps``."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.lr
        share = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
        return self.lr * (self.min_lr_ratio + (1 - self.min_lr_ratio) * cosine)
