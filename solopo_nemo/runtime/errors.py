"""The exceptions that end a command with a single line and no traceback."""

from __future__ import annotations


class UserError(Exception):
    """Bad configuration or bad data, which the user can correct.

    The message is one line: what is wrong, where (file, line, field or configuration key) and how to correct it.
    Commands print it to stderr and exit with code 2, without a traceback.
    """


class RunFault(Exception):
    """A run that has to end for a reason outside the code: a full disk, lack of memory, a lost rank, a NaN.

    The message is one line: what happened, where, and what to do. The exit code is 1. Saved checkpoints stay valid, and
    the same command resumes from them.

    Attributes:
        everywhere: True if all ranks raise it at the same place.
    """

    def __init__(self, message: str, everywhere: bool = False) -> None:
        super().__init__(message)
        self.everywhere = everywhere


def reason_of(error: BaseException, longest: int = 300) -> str:
    """The message of a library's error in one line, cut between words."""
    words = " ".join(str(error).split())
    return words if len(words) <= longest else f"{words[:longest].rpartition(' ')[0] or words[:longest]} ..."


def require(condition: bool, message: str) -> None:
    """Raises a :class:`UserError` with this message if the condition is false."""
    if not condition:
        raise UserError(message)


def require_at_least(least: int, **options: int | None) -> None:
    """Raises a :class:`UserError` if the value of an option of a command is smaller; None is not checked."""
    for name, value in options.items():
        require(value is None or value >= least, f"--{name.replace('_', '-')} {value}: must be at least {least}")
