"""Warnings that are said once a process."""

from __future__ import annotations

import logging
from functools import cache


@cache
def warn_once(message: str) -> None:
    """Warn of something that concerns the whole process, however often it is noticed."""
    logging.getLogger("solopo_nemo").warning(message)
