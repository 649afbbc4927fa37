"""Results of evaluations: read from disk and aggregated to means and paired differences with intervals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import pandas as pd

from solopo_nemo.data.answers import FIRST_RULE
from solopo_nemo.evaluation.scores import Mean, Values, level, mean
from solopo_nemo.evaluation.suites.suite import Suite, View
from solopo_nemo.runtime.errors import UserError, require

RECORD = "evaluation.json"
CELLS = "cells"
_ID, _VALUE, _SEED = "id", "value", "seed"
_TEXTS = ("response", "reason")


def model_name(model: str) -> str:
    """The name of an evaluated model: that of its folder; of a run's ``hf`` or checkpoint, with the run's name."""
    parts = [part for part in Path(model).parts if part not in ("hf", "checkpoints")] or [model]
    return "-".join(parts[-2:]) if parts[-1].startswith("step_") else parts[-1]


@dataclass(frozen=True)
class Measured:
    """The scores of one model.

    Attributes:
        name: display name of the model.
        folder: folder of the evaluation.
        record: content of ``evaluation.json``, which identifies the model.
        suites: for each suite a frame with one row per question. Columns: ``id``, ``value`` (the main score, 0 to 1)
            and one column per label.
        cells: for each suite and cell its settings, and the number of questions with and without an answer.
    """

    name: str
    folder: Path
    record: dict[str, Any]
    suites: dict[str, pd.DataFrame]
    cells: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Measured:
        """Read the output folder of ``tools/evaluate.py``.

        Raises:
            UserError: the folder is not an evaluation, or it contains no scores.
        """
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            cells = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / CELLS).glob("*/*.json"))]
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}: no evaluation, which has {RECORD} and {CELLS}/ ({error})") from None
        require(bool(cells), f"{folder}: no scores in it: let tools/evaluate.py finish a suite")
        rows: dict[str, list[dict[str, Any]]] = {}
        for cell in cells:
            for sample in cell["samples"]:
                kept = {k: v for k, v in sample.items() if k == _ID or (isinstance(v, str | int) and k not in _TEXTS)}
                rows.setdefault(cell["suite"], []).append(
                    {**cell["labels"], **kept, _VALUE: float(sample[cell["metric"]])}
                )
        scale = f" x{record['yarn']:g}" if record.get("yarn") else ""
        name = f"{model_name(record['model']) if record['base_url'] is None else record['model']}{scale}"
        described = {
            (cell["suite"], cell["cell"]): {
                "answer_rule": FIRST_RULE,
                **cell.get("settings", {}),
                "questions": len(cell["samples"]),
                "without an answer": len(cell.get("unanswered", {})),
            }
            for cell in cells
        }
        return cls(name, folder, record, {suite: pd.DataFrame(some) for suite, some in rows.items()}, described)


@dataclass(frozen=True)
class Figure:
    """The values of one view for several models. Each tuple has one entry per model.

    Attributes:
        view: the view.
        means: mean scores; None for a model without questions in the view.
        over_seeds: standard deviation of the mean over seeds; None with fewer than two seeds.
        gains: paired differences from the first model over the questions that both models answered; None for the
            first model and for a model without common questions.
    """

    view: View
    means: tuple[Mean | None, ...]
    over_seeds: tuple[float | None, ...]
    gains: tuple[Mean | None, ...]


def figures(suite: Suite, models: Sequence[Measured]) -> list[Figure]:
    """All views of a suite. At least one of the models must have results for the suite."""
    frames = [model.suites.get(suite.name) for model in models]
    there = [frame for frame in frames if frame is not None]
    columns = reduce(lambda a, b: a | b, (set(frame.columns) for frame in there)) - {_ID, _VALUE}
    labels = {
        column: sorted({value for frame in there if column in frame for value in frame[column].unique()})
        for column in columns
    }
    return [_figure(view, frames) for view in suite.views(labels)]


def _figure(view: View, frames: Sequence[pd.DataFrame | None]) -> Figure:
    parts = [None if frame is None else _chosen(view, frame) for frame in frames]
    gains = [None, *(_gain(view, parts[0], part) for part in parts[1:])]
    return Figure(
        view,
        tuple(_mean(view, part) for part in parts),
        tuple(_over_seeds(view, part) for part in parts),
        tuple(gains),
    )


def _chosen(view: View, frame: pd.DataFrame) -> pd.DataFrame | None:
    for column, value in view.where.items():
        frame = frame[frame[column] == value]
    return frame if len(frame) else None


def _groups(view: View, frame: pd.DataFrame) -> tuple[list[Values], list[list[str]]]:
    """Values (means over seeds) and question ids of a view, one group for each combination of ``view.each``."""
    keys = [column for column in frame.columns if column not in (_VALUE, _SEED)]
    questions = frame.groupby(keys, sort=True, dropna=False)[_VALUE].mean().reset_index()
    parts = [part for _, part in questions.groupby(list(view.each), sort=True)] if view.each else [questions]
    return [part[_VALUE].to_numpy() for part in parts], [part[_ID].tolist() for part in parts]


def _mean(view: View, frame: pd.DataFrame | None) -> Mean | None:
    return None if frame is None else level(*_groups(view, frame))


def _over_seeds(view: View, frame: pd.DataFrame | None) -> float | None:
    if frame is None or _SEED not in frame or frame[_SEED].nunique() < 2:
        return None
    runs = [mean(*_groups(view, run)).value for _, run in frame.groupby(_SEED)]
    return float(pd.Series(runs).std(ddof=1))


def _gain(view: View, first: pd.DataFrame | None, other: pd.DataFrame | None) -> Mean | None:
    if first is None or other is None or set(first.columns) != set(other.columns):
        return None
    keys = [column for column in first.columns if column != _VALUE]
    both = first.merge(other, on=keys, suffixes=("_first", ""))
    if both.empty:
        return None
    both[_VALUE] -= both.pop(f"{_VALUE}_first")
    return mean(*_groups(view, both))
