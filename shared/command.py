"""Run a command: exit code 0, 1 (failed) or 2 (wrong use), and a one-line error instead of a traceback."""

import errno
import os
import sys
from collections.abc import Callable, Sequence
from io import TextIOWrapper

from medunifier.shared.errors import UsageError, UserError


def run_command(command: Callable[[Sequence[str]], None], argv: Sequence[str]) -> int:
    """Run ``command(argv)`` and print errors that the user can fix as one line on standard error.

    Returns:
        0, 1 for a :class:`UserError`, 2 for a :class:`UsageError`, 130 for an interrupt. Any other exception
        propagates with its traceback, which a bug report needs.
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
    except KeyboardInterrupt:
        print("interrupted; the same command continues where it stopped", file=sys.stderr)
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
