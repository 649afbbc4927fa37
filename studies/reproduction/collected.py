"""The results of all experiments on disk, with the aggregations for tables, claims and plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from studies.reproduction.runs import Result
from studies.reproduction.statistics import Interval, over_seeds, over_seeds_and_questions
from studies.results import Results

STUDIES = ("main", "alpha", "rate", "time")
MINIATURE = "miniature.json"
"""The file of all results."""


@dataclass(frozen=True)
class Collected:
    """All results.

    Attributes:
        runs: study -> name of the cell -> one result per seed.
        about: machine, versions, commit, sizes, and seconds of the shared preparation.
    """

    runs: dict[str, dict[str, list[Result]]]
    about: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Collected:
        """Read the file that :meth:`write` wrote.

        Raises:
            UserError: the file is missing or has another format.
        """
        return Results.read(folder / MINIATURE).parse(cls._of)

    @classmethod
    def _of(cls, results: Results) -> Collected:
        runs: dict[str, dict[str, list[Result]]] = {}
        for run in results.runs:
            values = {key: value for key, value in run.items() if key not in ("study", "name")}
            runs.setdefault(run["study"], {}).setdefault(run["name"], []).append(Result.from_json(values))
        return cls(runs, results.about)

    def write(self, folder: Path) -> None:
        """Write all results."""
        runs = [
            {"study": study, "name": name, **asdict(result)}
            for study, cells in self.runs.items()
            for name, found in cells.items()
            for result in found
        ]
        Results(folder / MINIATURE, self.about, runs).save()

    def results(self, study: str, name: str) -> list[Result]:
        """The results of a cell, one per seed; empty if it has not been run."""
        return self.runs.get(study, {}).get(name, [])

    def accuracy(self, study: str, name: str, lengths: Sequence[int]) -> Interval | None:
        """Mean accuracy over lengths; None if the cell has not been run."""
        found = self.results(study, name)
        if not found:
            return None
        outcomes = [[result.score(length).outcomes() for length in lengths] for result in found]
        return over_seeds_and_questions(outcomes).clipped(0.0, 1.0)

    def outcomes(self, study: str = "main") -> dict[str, dict[int, dict[int, np.ndarray]]]:
        """Method -> seed -> length -> fp64 ``[questions]``, 1 for a right answer, else 0."""
        return {
            name: {r.seed: {score.length: score.outcomes() for score in r.scores} for r in found}
            for name, found in self.runs.get(study, {}).items()
        }

    def lengths(self) -> list[int]:
        """The context lengths that were scored."""
        return sorted({score.length for found in self.runs["main"].values() for r in found for score in r.scores})

    def last(self, name: str, curve: str) -> dict[int, float]:
        """Seed -> mean of a metric over the last tenth of the steps, for a method of the main table."""
        values = {}
        for result in self.results("main", name):
            steps, points = result.curves["step"], result.curves[curve]
            late = [point for step, point in zip(steps, points, strict=True) if step >= 0.9 * steps[-1]]
            values[result.seed] = float(np.mean(late))
        return values

    def ratio(self, study: str, above: str, below: str, attribute: str) -> Interval | None:
        """The ratio of an attribute of two cells, paired by seed."""
        first, second = ({r.seed: getattr(r, attribute) for r in self.results(study, n)} for n in (above, below))
        seeds = sorted(set(first) & set(second))
        return over_seeds([first[seed] / second[seed] for seed in seeds]) if seeds else None
