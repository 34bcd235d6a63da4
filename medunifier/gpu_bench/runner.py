"""Run measurements in processes of their own: side by side while they compile, one at a time while they measure.

A process that runs out of memory, crashes or takes too long ends alone. The processes are forked from a server that
has imported torch and transformers once, and that has not used the GPU.
"""

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from typing import Any

from medunifier.gpu_bench.sizes import Figures, Setting
from medunifier.gpu_bench.table import GROUPS
from medunifier.shared.files.os_services import usable_cores

READY, DONE, FAILED, NO_MEMORY = "ready", "done", "failed", "out of memory"
LOG_LINES = 12
LEAST_SECONDS = 20.0
"""A wave is not started with less time left."""
_PREPARING = 0.6  # of the time left, for a wave that others follow


Context = ForkServerContext | SpawnContext


def fork_context() -> ForkServerContext:
    """Return the context of all processes; its server imports what they need."""
    # What the server imports may look for a GPU; the usual way would initialise CUDA, which a fork does not survive.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    # Several measurements compile at a time.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(max(1, usable_cores() // 4)))
    root = str(Path(__file__).resolve().parents[2])
    os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"{__package__}.generation", f"{__package__}.tokenizer", f"{__package__}.shards"])
    return context


def call_by_name(function: str, *arguments: Any) -> Any:
    """Call ``module:function`` of this package, for a process of the server."""
    module, name = function.split(":")
    return getattr(import_module(f"{__package__}.{module}"), name)(*arguments)


@dataclass
class _Running:
    """A measurement's process and the connection over which it reports."""

    name: str
    process: Any
    connection: Connection
    log: Path

    def end(self) -> None:
        """End the process and those that it started, which are in its session."""
        if self.process.is_alive():
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                self.process.kill()  # it has no session yet
        self.process.join()
        self.connection.close()

    def last_words(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.is_file() else []
        return "\n".join(lines[-LOG_LINES:])


@dataclass(frozen=True)
class Outcome:
    """What became of a measurement: its figures by row, or the reason why there are none."""

    name: str
    figures: dict[str, Figures]
    error: str | None = None
    log: str = ""


def run_groups(
    names: Sequence[str],
    setting: Setting,
    context: Context,
    deadline: float,
    capacity: float,
    report: Callable[[Outcome], None],
) -> None:
    """Run the groups and report each outcome as soon as it is known.

    Args:
        names: of the groups, in the order in which they are measured.
        setting: passed to all.
        context: of the processes.
        deadline: ``time.monotonic()`` at which what still runs is ended.
        capacity: GiB of the GPU.
        report: called with each outcome.
    """
    waiting, alone = list(names), list[str]()
    while waiting or alone:
        left = deadline - time.monotonic()
        if left < LEAST_SECONDS:
            for name in waiting + alone:
                report(Outcome(name, {}, "no time left"))
            return
        wave = next_wave(waiting, capacity) if waiting else [alone.pop(0)]
        waiting = [name for name in waiting if name not in wave]
        # One that never finishes compiling must not take the time of all that come later.
        prepared_by = time.monotonic() + left * (_PREPARING if waiting else 1) - LEAST_SECONDS / 2
        alone += _run_wave(wave, setting, context, prepared_by, deadline, report)


def next_wave(waiting: Sequence[str], capacity: float) -> list[str]:
    """Return groups that together fit into ``capacity``: the first, and all later ones that fit beside it."""
    wave = [waiting[0]]
    for name in waiting[1:]:
        if sum(GROUPS[other].memory for other in [*wave, name]) <= capacity:
            wave.append(name)
    return wave


def _run_wave(
    names: Sequence[str],
    setting: Setting,
    context: Context,
    prepared_by: float,
    deadline: float,
    report: Callable[[Outcome], None],
) -> list[str]:
    """Run the groups side by side; return those that ran out of memory beside others, to be run again alone."""
    running = [_start(name, setting, context) for name in names]
    again = []
    try:
        preparing, ready = {measurement.connection: measurement for measurement in running}, []
        while preparing:
            arrived = wait(list(preparing), max(0.0, prepared_by - time.monotonic()))
            if not arrived:
                break
            for connection in arrived:
                measurement = preparing.pop(connection)  # type: ignore[call-overload]
                outcome = _receive(measurement, READY)
                if outcome is None:
                    ready.append(measurement)
                elif outcome.error == NO_MEMORY and len(names) > 1:
                    again.append(measurement.name)
                else:
                    report(outcome)
                if outcome is not None:
                    measurement.end()  # its memory is free for the others
        for measurement in preparing.values():
            measurement.end()
            report(Outcome(measurement.name, {}, "still compiling when the time was over", measurement.last_words()))
        for measurement in sorted(ready, key=lambda measurement: names.index(measurement.name)):
            measurement.connection.send(READY)
            if measurement.connection.poll(max(0.0, deadline - time.monotonic())):
                outcome = _receive(measurement, DONE)
                assert outcome is not None  # noqa: S101 - narrows a type
                if outcome.error == NO_MEMORY and len(names) > 1:
                    again.append(measurement.name)
                else:
                    report(outcome)
            else:
                report(Outcome(measurement.name, {}, "still measuring when the time was over"))
            measurement.end()  # its memory is free for the next
    finally:
        for measurement in running:
            if not measurement.connection.closed:
                measurement.end()
    return again


def _start(name: str, setting: Setting, context: Context) -> _Running:
    ours, theirs = context.Pipe()
    log = Path(setting.folder) / f"{name}.log"
    process = context.Process(target=_measure, args=(GROUPS[name].function, setting, theirs, str(log)))
    process.start()
    theirs.close()
    return _Running(name, process, ours, log)


def _receive(measurement: _Running, expected: str) -> Outcome | None:
    """Return what the process reports; None if it is ready."""
    try:
        kind, content = measurement.connection.recv()
    except (EOFError, OSError):
        measurement.process.join()
        reason = f"its process ended with code {measurement.process.exitcode}"
        return Outcome(measurement.name, {}, reason, measurement.last_words())
    if kind == READY == expected:
        return None
    if kind == DONE:
        return Outcome(measurement.name, content)
    return Outcome(measurement.name, {}, NO_MEMORY if kind == NO_MEMORY else content, measurement.last_words())


def _measure(function: str, setting: Setting, connection: Connection, log: str) -> None:
    """Body of a process: prepare, report, wait for the turn, measure, report."""
    os.setsid()  # so that its own workers can be ended with it
    with open(log, "w", encoding="utf-8", buffering=1) as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    try:
        measurement = call_by_name(function, setting)
        next(measurement)
        connection.send((READY, None))
        connection.recv()
        try:
            next(measurement)
        except StopIteration as stop:
            connection.send((DONE, stop.value))
    except BaseException as error:  # also SystemExit of a command
        traceback.print_exc()
        connection.send(_failure(error))


def _failure(error: BaseException) -> tuple[str, str]:
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return NO_MEMORY, ""
    lines = str(error).strip().splitlines() or [""]
    return FAILED, f"{type(error).__name__}: {lines[0]}"[:300]
