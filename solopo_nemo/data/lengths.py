"""Statistics of token counts for the summaries of the data tools."""

from __future__ import annotations

from array import array

import numpy as np


class Lengths:
    """Collects token counts. Memory: eight bytes per count."""

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
        """Return the counts as int64 `[n]`, in the order in which they were added."""
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
    """Return rho, the sum of short tokens divided by the sum of long tokens; None without long tokens."""
    return round(short.total / long.total, 4) if long.total else None
