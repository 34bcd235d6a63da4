"""Training loop of both stages: steps, logging, validation, checkpoints, resume. It is independent of the objective.

A stage passes it a :class:`Task`. The step determines the learning rate and what is logged and saved when; the
position in the data, in samples, is saved with each checkpoint. A run that is killed and started again
continues exactly: on a CPU to the last bit, and over the same samples on another number of processes.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
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
from medunifier.shared.training.hardware import peak_flops
from medunifier.shared.training.optimizer_step import FiniteCheck
from medunifier.shared.training.run_folder import CHECKPOINTS, RunFolder

if TYPE_CHECKING:
    from accelerate import Accelerator

# Per-step amounts of this process that are logged as rates: tokens and floating-point operations.
TOKENS, FLOP = "tokens", "flop"

SHOW_EVERY_S = 10.0
"""Least time between two reads of the figures from the device for the progress line, between log lines."""


class Task(Protocol):
    """Interface of a stage. Its models and optimizers are prepared by the Accelerator of the loop."""

    def step(self, micro_batches: list[Any], step: int) -> Mapping[str, Tensor | float]:
        """Run one optimizer step over the micro-batches of this process and return detached scalars by name.

        ``tokens`` and ``flop`` are amounts of this process and are logged as rates.
        """

    def validate(self, step: int) -> Mapping[str, float]:
        """Return metrics of the validation set, equal on all processes; write pictures to the run folder.

        Its batches pass through ``interruption.between``, so that an interrupt need not wait for all of them.
        """


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
    saved, read_at = start, -SHOW_EVERY_S
    run.rewind(start)
    batches = stream(samples)
    meter, finite = _Meter(config), FiniteCheck()
    if is_main() and start < config.steps:
        count = sum(weights.numel() for model in accelerator._models for weights in model.parameters())
        print(f"{count / 1e6:.4g} million parameters; first step running; it takes longest", flush=True)

    def save(step: int) -> None:
        nonlocal saved
        position = DataPosition(samples, config.global_batch())
        checkpoints.save(step, lambda folder: accelerator.save_state(str(folder)), position)
        saved = step

    def stop(step: int) -> None:
        """End the process for the pending signal, after a checkpoint of the steps done since the last."""
        if interruption.pending is None or step == config.steps:  # a finished run is validated, not resumed
            return
        if step > saved:
            finite.check()
            save(step)
        interruption.end(interruption.pending)

    with (
        Progress(config.steps, "training", "step", done=start, quiet=not is_main()) as progress,
        ExitStack() as at_the_end,
    ):
        for name in ("deferred", "stop"):
            at_the_end.callback(setattr, interruption, name, None)  # also after an error
        interruption.message = lambda: _stopped(progress, saved)

        def defer(action: Callable[[], None] | None) -> None:
            # Several processes would have to agree on the step: there a signal ends at once.
            interruption.deferred = action if world_size() == 1 else None

        def announce_stop() -> None:
            progress.what = "stopping after this step, again: at once"  # of the live line: a handler prints nothing

        for step in range(start + 1, config.steps + 1):
            # A signal to the process group ends the loader processes, and the next batch may never come. The state
            # is that of the step before meanwhile, and the signal handler saves it.
            defer(partial(stop, step - 1))
            with meter.waiting():
                micro_batches = [next(batches) for _ in range(config.accumulation)]
            defer(announce_stop)
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
            if not shown and time.monotonic() - read_at >= SHOW_EVERY_S and is_main():  # and so after the first step
                shown = {name: float(value) for name, value in figures.items()}
            if shown:
                read_at = time.monotonic()
            progress.advance(1, **{name: shown[name] for name in list(figures)[:4] if name in shown})
            stop(step)
            if validates:
                # It can take long: a signal ends it before its next batch. The last one at once, since a run that
                # is saved at its last step is not validated again.
                defer(None if last else announce_stop)
                interruption.stop = partial(stop, step) if interruption.deferred else None
                with progress.aside("validating"):
                    run.log(step, {f"validation/{name}": value for name, value in task.validate(step).items()})
                    if is_main():
                        save_curves(run.path)
                meter.restart()
                interruption.stop = None
                defer(announce_stop)
                stop(step)
            if step % config.checkpoint_every == 0 or last:
                save(step)
                meter.restart()
                stop(step)
    run.close()


def _stopped(progress: Progress, saved: int) -> str:
    """Release the terminal, and return where the run stopped and where the same command continues."""
    progress.stop()
    if saved and saved == progress.count:
        return f"interrupted: stopped at step {saved}, saved; the same command continues from step {saved}"
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
