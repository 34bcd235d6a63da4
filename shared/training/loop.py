"""Training loop of both stages: steps, logging, validation, checkpoints, resume. It is independent of the objective.

A stage passes it a :class:`Task`. The step determines the learning rate and what is logged and saved when; the
position in the data, in samples, is saved with each checkpoint. A run that is killed and started again
continues exactly: on a CPU to the last bit, and over the same samples on another number of processes.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from medunifier.shared.command import interruption
from medunifier.shared.files.os_services import peak_memory, usable_cores
from medunifier.shared.progress import Progress
from medunifier.shared.report_page.plots import save_curves
from medunifier.shared.training.checkpoints import Checkpoints, DataPosition, resume
from medunifier.shared.training.config import LoopConfig
from medunifier.shared.training.distributed import all_reduce_sum, collective_device, is_main, world_size
from medunifier.shared.training.mfu import peak_flops
from medunifier.shared.training.optimizer_step import FiniteCheck
from medunifier.shared.training.run_folder import CHECKPOINTS, RunFolder

if TYPE_CHECKING:
    from accelerate import Accelerator

# Per-step amounts of this process that are logged as rates: tokens and floating-point operations.
TOKENS, FLOP = "tokens", "flop"


class Task(Protocol):
    """Interface of a stage. Its models and optimizers are prepared by the Accelerator of the loop."""

    def step(self, micro_batches: list[Any], step: int) -> Mapping[str, Tensor | float]:
        """Run one optimizer step over the micro-batches of this process and return detached scalars by name.

        ``tokens`` and ``flop`` are amounts of this process and are logged as rates.
        """

    def validate(self, step: int) -> Mapping[str, float]:
        """Return metrics of the validation set, equal on all processes; write pictures to the run folder."""


def use_threads(threads: int) -> None:
    """Set the CPU threads of this process: ``threads``, or its part of the cores (a launcher sets one)."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(threads or max(1, usable_cores() // local))


def train(
    task: Task,
    accelerator: "Accelerator",
    run: RunFolder,
    stream: Callable[[int], Iterator[Any]],
    config: LoopConfig,
) -> None:
    """Run ``task`` from its newest checkpoint (or from the start) to ``config.steps``.

    Args:
        task: the stage's step and validation.
        accelerator: holds the models and optimizers that a checkpoint saves.
        run: where everything is written.
        stream: opens this rank's endless micro-batches at a global position (samples consumed by all).
        config: lengths and intervals.

    Raises:
        UserError: before the next log line, validation or checkpoint after a step with a figure that is not finite.
    """
    checkpoints = Checkpoints(run.path / CHECKPOINTS, config.keep_checkpoints)
    start, samples = resume(checkpoints, accelerator)
    if start and is_main():
        print(f"continuing {run.path} at step {start}", flush=True)
    saved = start
    run.rewind(start)
    batches = stream(samples)
    meter, finite = _Meter(config), FiniteCheck()
    with Progress(config.steps, "training", "step", done=start, quiet=not is_main()) as progress:
        interruption.message = lambda: _stopped(progress, saved)
        for step in range(start + 1, config.steps + 1):
            with meter.waiting():
                micro_batches = [next(batches) for _ in range(config.accumulation)]
            samples += config.global_batch()
            figures = task.step(micro_batches, step - 1)
            meter.add(figures)
            finite.add(figures, step)
            shown: dict[str, float] = {}
            last = step == config.steps
            logs, validates = step % config.log_every == 0 or last, step % config.validate_every == 0 or last
            if logs or validates:  # and so before each checkpoint, which is at a log line
                finite.check()
            if logs:
                shown = meter.read()
                run.log(step, shown)
            if step == start + 1:  # read back once, so that the first line shows a loss; later where it is logged
                shown = shown or {name: float(value) for name, value in figures.items()}
            progress.advance(1, **{name: shown[name] for name in list(figures)[:4] if name in shown})
            if validates:
                run.log(step, {f"validation/{name}": value for name, value in task.validate(step).items()})
                if is_main():
                    save_curves(run.path)
                meter.restart()
            if step % config.checkpoint_every == 0 or last:
                position = DataPosition(samples, config.global_batch())
                checkpoints.save(step, lambda folder: accelerator.save_state(str(folder)), position)
                saved = step
                meter.restart()
    run.close()


def _stopped(progress: Progress, saved: int) -> str:
    """Release the terminal, and return where the run stopped and where the same command continues."""
    progress.stop()
    then = f"continues from step {saved}" if saved else "starts again: no checkpoint was written yet"
    return f"interrupted after step {progress.count}; the same command {then}"


class _Meter:
    """Mean metrics since the last log line, throughput, and time spent waiting for data."""

    def __init__(self, config: LoopConfig) -> None:
        self._config = config
        self._sums: dict[str, Tensor] = {}
        self._steps = 0
        self.restart()

    def restart(self) -> None:
        """Restart the clock after work that is no training (validation, saving)."""
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
        means = all_reduce_sum(means.to(collective_device())).cpu() / world_size()
        seconds = max(time.perf_counter() - self._clock, 1e-9)
        timed = self._timed_steps
        figures = dict(zip(names, means.tolist(), strict=True))
        figures["samples_per_s"] = timed * self._config.global_batch() / seconds
        if (tokens := figures.pop(TOKENS, None)) is not None:
            figures["tokens_per_s"] = timed * tokens * world_size() / seconds
        if (flop := figures.pop(FLOP, None)) is not None:
            figures["mfu"] = timed * flop / seconds / peak_flops(self._config.mixed_precision)
        figures["data_wait_fraction"] = self._waited / seconds
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


def _peak_memory_gib() -> float:
    """Return the peak memory of the accelerator, or of this process without one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return peak_memory() / 2**30
