"""Numbers of tokens as people write them."""

from __future__ import annotations


def token_count(text: str) -> int:
    """Read a number of tokens: 8192, 8K, or 1M.

    Raises:
        ValueError: it is none.
    """
    unit = {"k": 1024, "m": 1024**2}.get(text[-1:].lower())
    return int(text[:-1]) * unit if unit else int(text)


def short_count(tokens: int) -> str:
    """Write a number of tokens: 8K and 1M where they are whole, else 8,000."""
    for unit, name in ((1024**2, "M"), (1024, "K")):
        if tokens % unit == 0:
            return f"{tokens // unit}{name}"
    return f"{tokens:,}"
