"""The training loop of both stages: steps, logging, validation, checkpoints, resume. It knows no objective.

A stage hands it a :class:`Task`. One integer, the step, drives everything: the learning rate, the position
in the data (step x global batch), what is logged and saved when. So a run that is killed and started again
continues as if nothing had happened; on a CPU, to the last bit.
"""

import math
import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from shared.checkpoints import Checkpoints
from shared.distributed import all_reduce_sum, is_main, world_size
from shared.errors import UserError
from shared.peak import peak_flops
from shared.plots import save_curves
from shared.progress import Progress
from shared.run_folder import CHECKPOINTS, RunFolder


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
        return self.batch_size * self.accumulation * world_size()


# Figures of a step that become rates: tokens that this process computed, and the arithmetic it did for them.
TOKENS, FLOP = "tokens", "flop"

# A run may be continued with another value of these; anything else would make it another run.
MAY_CHANGE = (
    "run_dir",
    "loop.steps",
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
    final_share: float = 0.1
    """Where the cosine ends, as a share of the peak."""
    clip: float = 1.0
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
        return self.lr * (self.final_share + (1 - self.final_share) * cosine)


class Task(Protocol):
    """What a stage gives to the loop. Its models and optimizers are prepared by the same Accelerator."""

    def step(self, micro_batches: list[Any], step: int) -> Mapping[str, Tensor | float]:
        """One optimizer step over this process' micro-batches; scalars by name, without gradient.

        ``tokens`` and ``flop`` among them are this process' amounts in the step, and logged as rates.
        """

    def validate(self, step: int) -> Mapping[str, float]:
        """Figures over the validation set, equal on all processes; pictures go to the run folder."""


def set_rate(optimizer: Any, rate: float) -> None:
    """Set every group's learning rate by hand: Accelerate's wrapper would step a scheduler once a process."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def check_finite(losses: Mapping[str, Tensor], step: int) -> None:
    """Stop before a step that would poison the weights.

    Raises:
        UserError: naming the terms that are not finite.
    """
    bad = [f"{name} = {float(value)}" for name, value in losses.items() if not torch.isfinite(value).all()]
    if bad:
        raise UserError(
            f"step {step}: {', '.join(bad)}; the weights are untouched since the last checkpoint. "
            "Lower the learning rate or look at the data of this step"
        )


def use_threads(threads: int) -> None:
    """Give this process its share of the cores: a launcher's default is one thread, a workstation has many."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(threads or max(1, len(os.sched_getaffinity(0)) // local))


def train(
    task: Task,
    accelerator: Accelerator,
    run: RunFolder,
    stream: Callable[[int], Iterator[Any]],
    config: LoopConfig,
) -> int:
    """Run ``task`` from its newest checkpoint (or from the start) to ``config.steps``; returns the steps made.

    Args:
        task: the stage's step and validation.
        accelerator: holds the models and optimizers that a checkpoint saves.
        run: where everything is written.
        stream: opens this rank's endless micro-batches at a global position (samples consumed by all).
        config: lengths and intervals.
    """
    checkpoints = Checkpoints(run.path / CHECKPOINTS, config.keep_checkpoints)
    start = checkpoints.latest() or 0
    if start:
        accelerator.load_state(str(checkpoints.path(start)))
        if is_main():
            print(f"continuing {run.path} at step {start}", flush=True)
    run.rewind(start)
    batches = stream(start * config.global_batch())
    meter = _Meter(config)
    with Progress(config.steps, "training", "step", done=start, quiet=not is_main()) as progress:
        for step in range(start + 1, config.steps + 1):
            with meter.waiting():
                micro_batches = [next(batches) for _ in range(config.accumulation)]
            figures = task.step(micro_batches, step - 1)
            meter.add(figures)
            shown: dict[str, float] = {}
            last = step == config.steps
            if step % config.log_every == 0 or last:
                shown = meter.read()
                run.log(step, shown)
            progress.advance(1, **{name: shown[name] for name in list(figures)[:4] if name in shown})
            if step % config.validate_every == 0 or last:
                run.log(step, {f"validation/{name}": value for name, value in task.validate(step).items()})
                if is_main():
                    save_curves(run.path)
                meter.restart()
            if step % config.checkpoint_every == 0 or last:
                checkpoints.save(step, lambda folder: accelerator.save_state(str(folder)))
                meter.restart()
    run.close()
    return max(0, config.steps - start)


class _Meter:
    """Means of the figures since the last line, and where the time went."""

    def __init__(self, config: LoopConfig) -> None:
        self._config = config
        self._sums: dict[str, Tensor] = {}
        self._steps = 0
        self.restart()

    def restart(self) -> None:
        """Do not count what was no training (validation, saving)."""
        self._clock, self._timed_steps, self._waited = time.perf_counter(), 0, 0.0

    def waiting(self) -> "_Waiting":
        return _Waiting(self)

    def add(self, figures: Mapping[str, Tensor | float]) -> None:
        for name, value in figures.items():
            value = torch.as_tensor(value, dtype=torch.float64).detach()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._steps += 1
        self._timed_steps += 1

    def read(self) -> dict[str, float]:
        names = sorted(self._sums)
        means = torch.stack([self._sums[name].cpu() for name in names]) / self._steps
        means = all_reduce_sum(means.to(_collective_device())).cpu() / world_size()
        seconds = max(time.perf_counter() - self._clock, 1e-9)
        timed = self._timed_steps
        figures = dict(zip(names, means.tolist(), strict=True))
        figures["samples_per_s"] = timed * self._config.global_batch() / seconds
        if (tokens := figures.pop(TOKENS, None)) is not None:
            figures["tokens_per_s"] = timed * tokens * world_size() / seconds
        if (flop := figures.pop(FLOP, None)) is not None:
            figures["share_of_peak"] = timed * flop / seconds / peak_flops(self._config.mixed_precision)
        figures["data_wait_share"] = self._waited / seconds
        figures["memory_gib"] = _peak_memory_gib()
        self._sums, self._steps = {}, 0
        self.restart()
        return figures


class _Waiting:
    def __init__(self, meter: _Meter) -> None:
        self._meter = meter

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._meter._waited += time.perf_counter() - self._start


def _collective_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def _peak_memory_gib() -> float:
    """Of the accelerator where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
