"""Errors for the user: one line with what was found, what was expected and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean NAME?" for the most similar known name, or "" if none is similar.

    A dotted name is also compared by its last component: "--steps" finds "--loop.steps".
    """
    names = list(known)
    ends = {known_name.removeprefix("--").rpartition(".")[2]: known_name for known_name in reversed(names)}
    found = get_close_matches(name.lower(), names, n=1)
    if not found or ends.get(name.removeprefix("--")):
        found = get_close_matches(name.lower().removeprefix("--"), ends, n=1, cutoff=0.75) or found
        found = [ends.get(match, match) for match in found]
    return f"; did you mean {found[0]}?" if found else ""


class UserError(Exception):
    """Invalid input or environment. The message is shown as one line; exit code 1."""


class UsageError(UserError):
    """Wrong use of a command: unknown key, missing argument, impossible combination; exit code 2."""
