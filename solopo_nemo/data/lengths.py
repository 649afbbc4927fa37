"""Token counts: how they are written, and their statistics as the summaries of the data tools give them."""

from __future__ import annotations

from array import array

import numpy as np


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


class Lengths:
    """Collects token counts, eight bytes each."""

    def __init__(self) -> None:
        self._counts = array("q")

    def add(self, tokens: int) -> None:
        """Add the count of one sample."""
        self._counts.append(tokens)

    @property
    def total(self) -> int:
        """The sum of all counts."""
        return sum(self._counts)

    def __len__(self) -> int:
        return len(self._counts)

    def values(self) -> np.ndarray:
        """Return the counts in the order they were added."""
        return np.asarray(self._counts)

    def statistics(self) -> dict[str, float]:
        """Return mean, min, median, 90th and 99th percentile and max; empty without counts."""
        if not self._counts:
            return {}
        counts = self.values()
        names = ("min", "p50", "p90", "p99", "max")
        values = np.percentile(counts, [0, 50, 90, 99, 100])
        return {"mean": round(float(counts.mean()), 2)} | {n: float(v) for n, v in zip(names, values, strict=True)}


def compression_rate(short: Lengths, long: Lengths) -> float | None:
    """Return rho, all short tokens over all long tokens; None without long ones."""
    return round(short.total / long.total, 4) if long.total else None
