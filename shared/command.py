"""Run a command: exit code 0, 1 (failed) or 2 (wrong use), and a one-line error instead of a traceback."""

import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from types import FrameType
from typing import NoReturn

from medunifier.shared.errors import UsageError, UserError

INTERRUPTED = "interrupted; the same command continues where it stopped"

GRACE_S = 3.0
"""A second signal within this time of the first is the same interruption: a terminal signals the whole process group,
and a launcher then signals its workers."""


def run_command(command: Callable[[Sequence[str]], None], argv: Sequence[str]) -> int:
    """Run ``command(argv)`` and print errors that the user can fix as one line on standard error.

    Returns:
        0, 1 for a :class:`UserError`, 2 for a :class:`UsageError`, 130 for an interrupt, whose message is printed if
        it has one. Any other exception propagates with its traceback, which a bug report needs.
    """
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
        if _is_first():
            print(str(error) or INTERRUPTED, file=sys.stderr)
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


def _is_first() -> bool:
    """Return whether this process prints, from the launcher's variables: torch may not be loaded yet."""
    return os.environ.get("RANK", "0") == "0"


class Interruption:
    """SIGINT and SIGTERM of a training process.

    While modules load, a signal ends the process at once: an exception within an import arrives as some other error.
    Later it raises KeyboardInterrupt once, and what fails on the way out is not reported.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._at, self._process, self.loading = 0.0, os.getpid(), True

    def install(self) -> None:
        """Handle both signals from now on (main thread)."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal came whose exception a library swallowed."""
        if self.signal:
            raise KeyboardInterrupt

    def exit(self, code: int) -> NoReturn:
        """End the process without the interpreter's shutdown, which reports threads and process groups left open."""
        import multiprocessing  # here: most commands start no process

        for child in multiprocessing.active_children():
            child.kill()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked loader worker: its parent ends it
            if number == signal.SIGTERM:
                os._exit(128 + number)
        elif self.loading:
            if _is_first():
                os.write(2, b"interrupted while loading; nothing was changed, start the same command again\n")
            self.exit(128 + number)
        elif not self.signal:
            self.signal, self._at = number, time.monotonic()
            sys.unraisablehook = lambda _: None  # destructors that fail during the unwinding
            raise KeyboardInterrupt
        elif time.monotonic() - self._at > GRACE_S:
            self.exit(128 + number)


interruption = Interruption()
"""Of this process; it has no effect unless :func:`run_training` installs it."""


def run_training(command: Callable[[Sequence[str]], None], argv: Sequence[str]) -> NoReturn:
    """Run a training as this process and exit; an interrupt ends it with one line, from the first moment on.

    The exit code is that of :func:`run_command`, or 128 + the signal.
    """
    interruption.install()
    try:
        code = run_command(command, argv)
    except BaseException:
        if not interruption.signal:
            raise
        code = 130
        if _is_first():
            print(INTERRUPTED, file=sys.stderr)
    if interruption.signal:
        interruption.exit(128 + interruption.signal)
    sys.exit(code)


def loaded() -> None:
    """State that imports are done: from now on an interrupt unwinds, so that files are complete or absent."""
    interruption.loading = False


def announce(text: str) -> None:
    """Print a line on standard error at once, on the first process, before the slow imports that follow."""
    if _is_first():
        print(text, file=sys.stderr, flush=True)
