"""The one exception type that ends a command with exit code 2 and a single line."""

from __future__ import annotations


class UserError(Exception):
    """Bad configuration or bad data: something the user can mend.

    The message is one line that says what is wrong, where (file, line, field or configuration key)
    and how to mend it. Entry points print it to stderr and exit with code 2, without a traceback.
    """
