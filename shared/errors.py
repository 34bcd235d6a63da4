"""Errors for the user: one line with what was found, what was expected and what to do."""


class UserError(Exception):
    """Invalid input or environment. The message is shown as one line; exit code 1."""


class UsageError(UserError):
    """Wrong use of a command: unknown key, missing argument, impossible combination; exit code 2."""
