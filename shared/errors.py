"""Errors that are answers to a user: one line that says what was found, what was expected, what to do."""


class UserError(Exception):
    """A mistake of the user or of their files. Its text is the one line that is shown; exit code 1."""


class UsageError(UserError):
    """A command that cannot be understood: unknown key, missing argument, impossible combination; exit code 2."""
