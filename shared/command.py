"""Run a command: exit code 0, 1 (failed) or 2 (wrong use), and a one-line error instead of a traceback."""

import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from types import FrameType
from typing import NoReturn, TypeVar

from medunifier.shared.errors import UsageError, UserError

T = TypeVar("T")
INTERRUPTED = "interrupted"
CONTINUES = "interrupted; the same command continues where it stopped"

WAIT_FOR_FIRST_S = 5.0
"""How long another process of a training waits before it reports an error. Most fail in all processes, or in the
first, whose absence the others notice as a failed collective operation."""

WAIT_AFTER_SIGNAL_S = 1.0
"""How long the other processes live after a signal: the first would report a lost connection otherwise."""

SAME_SIGNAL_S = 1.0
"""How long after a deferred signal another is its copy: a launcher passes on what the terminal sent already."""


class _Work:
    resumable = False


def can_continue() -> None:
    """Note that the command has begun work that the same command continues after an interrupt."""
    _Work.resumable = True


def run_command(command: Callable[[Sequence[str]], None], argv: Sequence[str]) -> int:
    """Run ``command(argv)`` and print errors that the user can fix as one line on standard error.

    Returns:
        0, 1 for a :class:`UserError`, 2 for a :class:`UsageError`, 130 for an interrupt, whose message is printed if
        it has one, or else a line that says whether :func:`can_continue` was called. Any other exception propagates
        with its traceback, which a bug report needs.
    """
    _Work.resumable = False
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a console in cp1252 or ASCII cannot show every character
    try:
        command(argv)
    except UsageError as error:
        print(f"error: {error} (--help shows the options)", file=sys.stderr)
        return 2
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        if is_first_process():
            print(str(error) or (CONTINUES if _Work.resumable else INTERRUPTED), file=sys.stderr)
        return 130
    except BrokenPipeError:
        # `medunifier … | head` closes standard output early: not an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        if error.filename is None and not full:
            raise
        place = "" if error.filename is None else f"{error.filename}: "
        advice = "; free some space, and the same command continues" if full else ""
        print(f"error: {place}{error.strerror}{advice}", file=sys.stderr)
        return 1
    return 0


def is_first_process() -> bool:
    """Return whether this process prints, from the launcher's variables: torch may not be loaded yet."""
    return os.environ.get("RANK", "0") == "0"


class Interruption:
    """SIGINT and SIGTERM of a training process: one line on standard error, then the end of the process.

    While ``deferred`` is set, the first signal only sets ``pending``, and the code that set ``deferred`` calls
    :meth:`end` at its next safe moment; a second signal ends at once. Nothing is unwound: an exception out of an
    import, a destructor or a collective operation arrives as some other error, often with a traceback of its own.
    What is on disk stays valid, as after a kill: files appear by rename.
    """

    def __init__(self) -> None:
        self.message: Callable[[], str] = lambda: "interrupted while loading; start the same command again"
        """Returns the line; replaced once there is progress to state."""
        self.deferred: Callable[[], None] | None = None
        """Called, in the signal handler, for a signal whose end is deferred; None: a signal ends at once."""
        self.pending: int | None = None
        """The deferred signal."""
        self.stop: Callable[[], None] | None = None
        """Ends the process for the pending signal, between the batches of :meth:`between`."""
        self._process, self._received_at = os.getpid(), 0.0

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle both signals within the block (main thread)."""
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked loader worker: its parent ends it
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        # torch raises an error there when a loader worker ends. A function, since Python complains of a signal that
        # arrived before its handler became SIG_DFL.
        signal.signal(signal.SIGCHLD, lambda *_: None)
        if self.pending is None and self.deferred is not None:
            self.pending, self._received_at = number, time.monotonic()
            self.deferred()
        elif self.pending is None or time.monotonic() - self._received_at > SAME_SIGNAL_S:
            self.end(number)

    def between(self, batches: Iterator[T]) -> Iterator[T]:
        """Yield batches; with ``stop``, a signal ends the process while one is read, or before the next one is.

        Not while one is processed: a graph may be being traced then, and what it holds is no state to save.
        """
        while True:
            processing = self.deferred
            self.deferred = self.stop or processing
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self.deferred = processing
            yield batch
            if self.pending is not None and self.stop is not None:
                self.stop()

    def end(self, number: int) -> NoReturn:
        """Print the message and end the process and its children with the exit code of signal ``number``."""
        for again in (signal.SIGINT, signal.SIGTERM):  # a launcher passes on what the terminal sent already
            signal.signal(again, signal.SIG_IGN)
        try:
            if is_first_process():
                os.write(2, f"{self.message()}\n".encode())  # print() may be what was interrupted
            else:
                time.sleep(WAIT_AFTER_SIGNAL_S)
            import multiprocessing  # here: most commands start no process

            for child in multiprocessing.active_children():
                child.kill()
        finally:
            os._exit(128 + number)


interruption = Interruption()
"""Of this process; it has no effect unless its signals are handled."""


def run_training(command: Callable[[Sequence[str]], None], argv: Sequence[str]) -> NoReturn:
    """Run a training as this process and exit; an interrupt ends it with one line, from the first moment on.

    The exit code is that of :func:`run_command`, or 128 + the signal.
    """

    def patient(argv: Sequence[str]) -> None:
        try:
            command(argv)
        except Exception:
            # If the first process fails too, it reports the reason, and a launcher ends this one meanwhile.
            if not is_first_process():
                time.sleep(WAIT_FOR_FIRST_S)
            raise

    with interruption.handled():
        code = run_command(patient, argv)
    sys.exit(code)


def announce(text: str) -> None:
    """Print a line at once, on the first process, also before a process group exists."""
    if is_first_process():
        print(text, flush=True)
