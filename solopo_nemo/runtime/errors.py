"""The exceptions that end a command with a single line and no traceback."""

from __future__ import annotations


class UserError(Exception):
    """Bad configuration or bad data: something the user can mend.

    The message is one line that says what is wrong, where (file, line, field or configuration key)
    and how to mend it. Entry points print it to stderr and exit with code 2, without a traceback.
    """


class RunFault(Exception):
    """A run that cannot go on, for a reason that lies outside the code: a full disk, memory, a lost rank, a NaN.

    The message is one line that says what happened, where, and what to do. The exit code is 1: what is saved stays
    good, and the same command goes on from it.

    Attributes:
        everywhere: all ranks raise it at the same place.
    """

    everywhere = False


def require(condition: bool, message: str) -> None:
    """Raise a :class:`UserError` with a message unless a condition holds."""
    if not condition:
        raise UserError(message)
