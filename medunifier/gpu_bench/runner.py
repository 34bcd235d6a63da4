"""Run measurements in processes of their own: a few side by side while they compile, one alone while it measures.

Beside others that compile, generation was measured at half its rate: so the others are stopped meanwhile. A process
that runs out of memory, crashes or takes too long ends alone. The processes are forked from a server that has
imported torch and transformers once, and that has not used the GPU.
"""

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from typing import Any

import psutil

from medunifier.gpu_bench.sizes import Figures, Setting
from medunifier.gpu_bench.table import GROUPS

READY, DONE, FAILED, NO_MEMORY = "ready", "done", "failed", "out of memory"
SIDE_BY_SIDE = 3
"""Groups at a time: each compiles on one core for most of its time, and on all of them in between."""
LEAST_SECONDS = 20.0
"""A group is not started with less time left."""
MOST_SECONDS = 60.0
"""Of one measurement."""
_LOG_LINES = 12

Context = ForkServerContext | SpawnContext


def fork_context(threads: int) -> ForkServerContext:
    """Return the context of all processes, which compile with so many threads; its server imports what they need."""
    # What the server imports may look for a GPU; the usual way would initialise CUDA, which a fork does not survive.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(threads))
    root = str(Path(__file__).resolve().parents[2])
    os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"{__package__}.generation", f"{__package__}.tokenizer"])
    return context


def call_by_name(function: str, *arguments: Any) -> Any:
    """Call ``module:function`` of this package, for a process of the server."""
    module, name = function.split(":")
    return getattr(import_module(f"{__package__}.{module}"), name)(*arguments)


@dataclass(frozen=True)
class Outcome:
    """What became of a measurement: its figures by row, or the reason why there are none."""

    name: str
    figures: dict[str, Figures]
    error: str | None = None
    log: str = ""


@dataclass(eq=False)
class _Running:
    """A measurement's process and the connection over which it reports."""

    name: str
    process: Any
    connection: Connection
    log: Path

    def signal(self, number: int) -> None:
        """Send a signal to the process and those that it started, such as the compiler's."""
        for _ in range(2):  # some may have started others meanwhile
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(self.process.pid)
                for member in [process, *process.children(recursive=True)]:
                    with suppress(psutil.NoSuchProcess):
                        member.send_signal(number)

    def end(self) -> None:
        """End the process and those that it started."""
        self.signal(signal.SIGKILL)
        self.process.join()
        self.connection.close()

    def failed(self, reason: str) -> Outcome:
        """Return an outcome with the last lines of the log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.is_file() else []
        return Outcome(self.name, {}, reason, "\n".join(lines[-_LOG_LINES:]))

    def receive(self) -> Outcome | None:
        """Return what the process reports; None if it is ready to measure."""
        try:
            kind, content = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            return self.failed(f"its process ended with code {self.process.exitcode}")
        if kind == READY:
            return None
        return Outcome(self.name, content) if kind == DONE else self.failed(content)


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
        names: of the groups, in the order in which they are started if their memory allows.
        setting: passed to all.
        context: of the processes.
        deadline: ``time.monotonic()`` at which what still runs is ended.
        capacity: GiB of the GPU.
        report: called with each outcome.
    """
    memory = {name: GROUPS[name].memory for name in names}
    waiting, running = list(names), list[_Running]()
    try:
        while waiting or running:
            left = deadline - time.monotonic()
            for name in list(waiting) if left >= LEAST_SECONDS else ():
                if fits(memory, [group.name for group in running], name, capacity):
                    waiting.remove(name)
                    running.append(_start(name, setting, context))
            arrived = wait([group.connection for group in running], max(0.0, left)) if running else ()
            if not arrived:
                break
            group = next(group for group in running if group.connection in arrived)
            others = [other for other in running if other is not group]
            outcome = group.receive()
            if outcome is None:
                with stopped(others):
                    outcome = _measured(group, deadline)
                    group.end()  # its memory is free for the next
            else:
                group.end()
            running.remove(group)
            if outcome.error == NO_MEMORY and others:  # again, alone
                memory[group.name] = capacity
                waiting.append(group.name)
            else:
                report(outcome)
        for group in running:
            report(group.failed("still compiling when the time was over"))
        for name in waiting:
            report(Outcome(name, {}, "no time left"))
    finally:
        for group in running:
            group.end()


def fits(memory: dict[str, float], running: Sequence[str], name: str, capacity: float) -> bool:
    """Return whether a group can start beside those that run. One that is too large for the card fails by itself."""
    total = sum(memory[other] for other in running) + memory[name]
    return not running or (len(running) < SIDE_BY_SIDE and total <= capacity)


@contextmanager
def stopped(groups: Sequence[_Running]) -> Iterator[None]:
    """Stop the processes of the groups, and continue them afterwards."""
    for group in groups:
        group.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for group in groups:
            group.signal(signal.SIGCONT)


def _measured(group: _Running, deadline: float) -> Outcome:
    with suppress(OSError):  # it ended, which the next lines report
        group.connection.send(READY)
    if group.connection.poll(max(0.0, min(MOST_SECONDS, deadline - time.monotonic()))):
        return group.receive() or group.failed("it reported twice")
    return group.failed("still measuring when the time was over")


def _start(name: str, setting: Setting, context: Context) -> _Running:
    ours, theirs = context.Pipe()
    log = Path(setting.folder) / f"{name}.log"
    process = context.Process(target=_measure, args=(GROUPS[name].function, setting, theirs, str(log)))
    process.start()
    theirs.close()
    return _Running(name, process, ours, log)


def _measure(function: str, setting: Setting, connection: Connection, log: str) -> None:
    """Body of a process: prepare, report, wait for the turn, measure, report."""
    with open(log, "w", encoding="utf-8", buffering=1) as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    try:
        measurement = call_by_name(function, setting)
        next(measurement)
        connection.send((READY, None))
        connection.recv()
        idle = call_by_name("measure:idle_share", setting)
        try:
            next(measurement)
        except StopIteration as stop:
            for figures in stop.value.values():
                figures.details["gpu_idle"] = idle
            connection.send((DONE, stop.value))
    except BaseException as error:  # also SystemExit of a command
        traceback.print_exc()
        connection.send(failure(error))


def failure(error: BaseException) -> tuple[str, str]:
    """Return the kind of an error and its reason in one line."""
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return NO_MEMORY, NO_MEMORY
    lines = str(error).strip().splitlines() or [""]
    return FAILED, f"{type(error).__name__}: {lines[0]}"[:300]
