"""The results of all experiments on disk, and the questions that tables, claims and plots ask of them."""

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
    """Results by study and name, each a seed.

    Attributes:
        runs: of each study, by the name of the cell.
        about: machine, versions, commit, sizes and the seconds of what the runs have in common.
    """

    runs: dict[str, dict[str, list[Result]]]
    about: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Collected:
        """What :meth:`write` wrote.

        Raises:
            UserError: there is none, or it is something else.
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
        """The runs of a cell, by seed; empty where it has not been run."""
        return self.runs.get(study, {}).get(name, [])

    def accuracy(self, study: str, name: str, lengths: Sequence[int]) -> Interval | None:
        """Accuracy over some lengths; None where it has not been run."""
        found = self.results(study, name)
        if not found:
            return None
        outcomes = [[result.score(length).outcomes() for length in lengths] for result in found]
        return over_seeds_and_questions(outcomes).clipped(0.0, 1.0)

    def outcomes(self, study: str = "main") -> dict[str, dict[int, dict[int, np.ndarray]]]:
        """By method, seed and length, 1 or 0 a question."""
        return {
            name: {r.seed: {score.length: score.outcomes() for score in r.scores} for r in found}
            for name, found in self.runs.get(study, {}).items()
        }

    def lengths(self) -> list[int]:
        """The context lengths that were scored."""
        return sorted({score.length for found in self.runs["main"].values() for r in found for score in r.scores})

    def last(self, name: str, curve: str) -> dict[int, float]:
        """A metric's mean over the last tenth of a training of the main table, by seed."""
        values = {}
        for result in self.results("main", name):
            steps, points = result.curves["step"], result.curves[curve]
            late = [point for step, point in zip(steps, points, strict=True) if step >= 0.9 * steps[-1]]
            values[result.seed] = float(np.mean(late))
        return values

    def ratio(self, study: str, above: str, below: str, attribute: str) -> Interval | None:
        """A figure of one cell over another's, seed by seed."""
        first, second = ({r.seed: getattr(r, attribute) for r in self.results(study, n)} for n in (above, below))
        seeds = sorted(set(first) & set(second))
        return over_seeds([first[seed] / second[seed] for seed in seeds]) if seeds else None
