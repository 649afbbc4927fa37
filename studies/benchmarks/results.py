"""Evaluation of benchmark results: seconds and peak memory of a run, and their spread over rounds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studies.benchmarks.spec import GIB
from studies.results import Results, Run

BUDGET_GIB = 1.5
"""Memory budget in the search for the longest prompt: GiB per rank above the loaded model."""


@dataclass(frozen=True)
class Spread:
    """Median and extremes of repeated values."""

    median: float
    low: float
    high: float
    count: int

    def over(self, divisor: float) -> Spread:
        """The spread with every value divided by a number."""
        return Spread(self.median / divisor, self.low / divisor, self.high / divisor, self.count)

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The spread of one or more values."""
        found = list(values)
        return cls(statistics.median(found), min(found), max(found), len(found))


def step_seconds(run: Run) -> float:
    """Seconds of a step: the median over all steps except the first, which allocates and warms up."""
    return statistics.median(run["seconds"][1:] or run["seconds"])


def peak_gib(run: Run) -> float:
    """Peak memory of the highest rank, in GiB above the loaded model."""
    return float(max(run["peak_bytes"])) / GIB


def ratio(above: Iterable[Run], below: Iterable[Run], value: Callable[[Run], float]) -> Spread | None:
    """The ratio of a value of two specifications, paired by round; None if no round has both."""
    first, second = ({run["round"]: value(run) for run in runs} for runs in (above, below))
    shared = sorted(first.keys() & second.keys())
    return Spread.of(first[number] / second[number] for number in shared) if shared else None


@dataclass(frozen=True)
class Collected:
    """All results of a folder.

    Attributes:
        runs: stem of the file -> its runs.
    """

    runs: dict[str, list[Run]]

    @classmethod
    def read(cls, folder: Path) -> Collected:
        """Read all results of a folder.

        Raises:
            UserError: a JSON file is not a results file.
        """
        return cls({path.stem: Results.read(path).runs for path in sorted(folder.glob("*.json"))})

    def select(self, names: str | Sequence[str], **spec: Any) -> list[Run]:
        """The runs of files whose specification has the given values, without skipped runs."""
        return [
            run
            for name in ([names] if isinstance(names, str) else names)
            for run in self.runs.get(name, [])
            if "skipped" not in run and all(run["spec"].get(key) == value for key, value in spec.items())
        ]

    def spread(self, names: str | Sequence[str], value: Callable[[Run], float], **spec: Any) -> Spread | None:
        """Median and extremes of a value; None without measurements."""
        runs = self.select(names, **spec)
        return Spread.of(map(value, runs)) if runs else None

    def spreads(
        self, names: str | Sequence[str], value: Callable[[Run], float], by: str, **spec: Any
    ) -> dict[Any, Spread]:
        """Value of a field of the specification -> median and extremes of a value."""
        fields = sorted({run["spec"][by] for run in self.select(names, **spec)})
        return {field: Spread.of(map(value, self.select(names, **{by: field}, **spec))) for field in fields}

    def bracket(self, name: str, **spec: Any) -> tuple[int, int | None] | None:
        """The longest measured prompt within the budget, and the shortest above it (or None); None if none fits."""
        peaks = {run["spec"]["long"]: peak_gib(run) for run in self.select(name, **spec)}
        fits = max((long for long, peak in peaks.items() if peak <= BUDGET_GIB), default=0)
        exceeds = min((long for long, peak in peaks.items() if peak > BUDGET_GIB and long > fits), default=None)
        return (fits, exceeds) if fits else None

    def commands(self, name: str) -> list[str]:
        """The commands that produced the runs of a file."""
        return list(dict.fromkeys(run["command"] for run in self.runs.get(name, [])))
