"""Log messages that appear once in a process."""

from __future__ import annotations

import logging
from functools import cache


@cache
def say_once(message: str, level: int = logging.INFO) -> None:
    """Logs a message at its first call in this process; later calls with the same message do nothing."""
    logging.getLogger("solopo_nemo").log(level, message)


def warn_once(message: str) -> None:
    """Logs a warning once, as :func:`say_once` does."""
    say_once(message, logging.WARNING)
