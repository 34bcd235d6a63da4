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
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from medunifier.gpu_bench.sizes import Figures, Setting
from medunifier.gpu_bench.table import GROUPS

READY, DONE, FAILED, NO_MEMORY = "ready", "done", "failed", "no memory"
LOG_LINES = 12
LEAST_SECONDS = 20.0
"""A wave is not started with less time left."""


def fork_context() -> ForkServerContext:
    """Return the context of all processes; its server imports what they need."""
    # Its processes look for a GPU while they import; the usual way would initialise CUDA before the fork.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    root = str(Path(__file__).resolve().parents[2])
    os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"{__package__}.generation", f"{__package__}.tokenizer", f"{__package__}.shards"])
    return context


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
    context: ForkServerContext,
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
    waiting = [[name] for name in names]
    while waiting:
        if deadline - time.monotonic() < LEAST_SECONDS:
            for name in (name for wave in waiting for name in wave):
                report(Outcome(name, {}, "no time left"))
            return
        wave = _next_wave(waiting, capacity)
        for name in _run_wave(wave, setting, context, deadline, report):
            waiting.append([name])


def _next_wave(waiting: list[list[str]], capacity: float) -> list[str]:
    """Take groups off the list that together fit into ``capacity``: the first, and all later ones that still fit."""
    wave = list(waiting.pop(0))
    for candidate in list(waiting):
        if sum(GROUPS[name].memory for name in [*wave, *candidate]) <= capacity:
            wave += candidate
            waiting.remove(candidate)
    return wave


def _run_wave(
    names: Sequence[str],
    setting: Setting,
    context: ForkServerContext,
    deadline: float,
    report: Callable[[Outcome], None],
) -> list[str]:
    """Run the groups side by side; return those that ran out of memory beside others, to be run again alone."""
    running = [_start(name, setting, context) for name in names]
    again = []
    try:
        preparing, ready = {measurement.connection: measurement for measurement in running}, []
        while preparing:
            # What is ready goes first if the others leave too little time for it.
            left = deadline - time.monotonic() - LEAST_SECONDS / 2
            arrived = wait(list(preparing), max(0.0, left))
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


def _start(name: str, setting: Setting, context: ForkServerContext) -> _Running:
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
        module, name = function.split(":")
        measurement = getattr(import_module(f"{__package__}.{module}"), name)(setting)
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
