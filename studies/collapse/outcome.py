"""What became of a cell: trained by the recipe, scored on short and long contexts, with what the run's metrics say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from solopo_nemo.runtime.output import atomic_text
from solopo_nemo.training.report.rows import read_metrics
from studies.collapse.cells import Cell
from studies.reproduction.runs import run_method
from studies.reproduction.start import Start

CURVES = ("logps/chosen", "logps/chosen_long", "align/gap", "rewards/margin")


@dataclass(frozen=True)
class Outcome:
    """The result of a cell.

    Attributes:
        cell: which.
        alpha: that it was trained with.
        questions: a length.
        short, long: right answers on contexts of the short and of the long length.
        curves: every step's metrics, as far as the objective has them.
    """

    cell: Cell
    alpha: float
    questions: int
    short: int
    long: int
    curves: dict[str, list[float]]

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Outcome:
        """An outcome out of plain values."""
        return cls(**{**values, "cell": Cell(**values["cell"])})

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @property
    def rows(self) -> list[dict[str, float]]:
        """The curves as rows of ``metrics.jsonl``."""
        steps = len(self.curves["logps/chosen"])
        return [{"step": i + 1} | {name: curve[i] for name, curve in self.curves.items()} for i in range(steps)]


def outcome_file(cell: Cell, folder: Path) -> Path:
    """The file of a finished cell in the folder of all cells."""
    return folder / f"{cell.name}.json"


def read_outcome(file: Path) -> Outcome:
    """What :func:`run_cell` left."""
    return Outcome.from_json(json.loads(file.read_text(encoding="utf-8")))


def run_cell(cell: Cell, start: Start, pairs: Path, folder: Path) -> Outcome:
    """Train and score a cell, and leave the outcome in its file.

    Args:
        cell: what to run.
        start: the starting model.
        pairs: triplets of the cell's gap and seed.
        folder: of all cells.
    """
    own = folder / cell.name
    shutil.rmtree(own, ignore_errors=True)
    result = run_method(cell.run(), start, pairs, own, keep=True)
    rows = read_metrics(own / "run" / "metrics.jsonl")
    alpha = cell.alpha
    if isinstance(alpha, str):
        alpha = json.loads((own / "run" / "alpha.json").read_text(encoding="utf-8"))["alpha"]
    short, long = (int(result.score(length).outcomes().sum()) for length in (1, cell.gap))
    curves = {name: [float(f"{row[name]:.4g}") for row in rows] for name in CURVES if name in rows[0]}
    outcome = Outcome(cell, float(alpha), cell.run().questions, short, long, curves)
    with atomic_text(outcome_file(cell, folder)) as stream:
        stream.write(json.dumps(outcome.as_json()) + "\n")
    shutil.rmtree(own)
    return outcome


def pooled(outcomes: Sequence[Outcome]) -> tuple[int, int, int]:
    """Right answers on short and on long contexts, and questions, over the seeds of one cell."""
    return sum(o.short for o in outcomes), sum(o.long for o in outcomes), sum(o.questions for o in outcomes)
