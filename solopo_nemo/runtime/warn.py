"""Messages that are said once a process."""

from __future__ import annotations

import logging
from functools import cache


@cache
def say_once(message: str, level: int = logging.INFO) -> None:
    """Log something that concerns the whole process, however often it is noticed."""
    logging.getLogger("solopo_nemo").log(level, message)


def warn_once(message: str) -> None:
    """As :func:`say_once`, a warning."""
    say_once(message, logging.WARNING)
