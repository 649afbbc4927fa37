"""All results of a folder, and the questions that figures ask of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studies.benchmarks.results import Results, Run, Spread, peak_gib

BUDGET_GIB = 1.5
"""Of the longest trainable prompt, a rank, above the loaded model."""


@dataclass(frozen=True)
class Collected:
    """Runs by the name of their file."""

    runs: dict[str, list[Run]]

    @classmethod
    def read(cls, folder: Path) -> Collected:
        """Every result of a folder.

        Raises:
            UserError: a JSON file that is none.
        """
        return cls({path.stem: Results.read(path).runs for path in sorted(folder.glob("*.json"))})

    def select(self, names: str | Sequence[str], **spec: Any) -> list[Run]:
        """The runs of some files whose specification has the given values; what was skipped is left out."""
        return [
            run
            for name in ([names] if isinstance(names, str) else names)
            for run in self.runs.get(name, [])
            if "skipped" not in run and all(run["spec"].get(key) == value for key, value in spec.items())
        ]

    def spread(self, names: str | Sequence[str], value: Callable[[Run], float], **spec: Any) -> Spread | None:
        """Median and extremes of a value; None where nothing was measured."""
        runs = self.select(names, **spec)
        return Spread.of(map(value, runs)) if runs else None

    def bracket(self, name: str, **spec: Any) -> tuple[int, int | None] | None:
        """The longest prompt measured within the budget, and the shortest beyond it if one was tried; None without."""
        peaks = {run["spec"]["long"]: peak_gib(run) for run in self.select(name, **spec)}
        fits = max((long for long, peak in peaks.items() if peak <= BUDGET_GIB), default=0)
        exceeds = min((long for long, peak in peaks.items() if peak > BUDGET_GIB and long > fits), default=None)
        return (fits, exceeds) if fits else None

    def commands(self, names: Sequence[str]) -> list[str]:
        """The commands that the runs of some files came from."""
        return list(dict.fromkeys(run["command"] for name in names for run in self.runs.get(name, [])))
