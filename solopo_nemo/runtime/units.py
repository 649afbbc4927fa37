"""Numbers of tokens as people write them."""

from __future__ import annotations


def token_count(text: str) -> int:
    """Parses a number of tokens: ``8192``, ``8K`` (8192) or ``1M`` (1048576).

    Raises:
        ValueError: the text is no such number.
    """
    unit = {"k": 1024, "m": 1024**2}.get(text[-1:].lower())
    return int(text[:-1]) * unit if unit else int(text)


def short_count(tokens: int) -> str:
    """Formats a number of tokens: ``8K`` and ``1M`` for multiples of 1024 and 1048576, else ``8,000``."""
    for unit, name in ((1024**2, "M"), (1024, "K")):
        if tokens % unit == 0:
            return f"{tokens // unit}{name}"
    return f"{tokens:,}"
