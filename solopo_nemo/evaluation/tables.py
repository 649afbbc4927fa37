"""Score tables for the terminal and the page, and the JSON summary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from solopo_nemo.evaluation.measured import Figure, Measured, figures
from solopo_nemo.evaluation.scores import Mean
from solopo_nemo.evaluation.suites import SUITES
from solopo_nemo.evaluation.suites.suite import Suite
from solopo_nemo.pages.tables import Table


def measured_suites(models: Sequence[Measured]) -> list[tuple[Suite, list[Figure]]]:
    """Every suite that at least one model has results for, with its views."""
    return [
        (suite, figures(suite, models))
        for name, suite in SUITES.items()
        if any(name in model.suites for model in models)
    ]


def unlike_names(models: Sequence[Measured]) -> list[str]:
    """Unique display names. The folder name is appended to names that occur more than once."""
    names = [model.name for model in models]
    return [
        name if names.count(name) == 1 else f"{name} ({model.folder.name})"
        for name, model in zip(names, models, strict=True)
    ]


def suite_table(suite: Suite, views: Sequence[Figure], names: Sequence[str]) -> Table:
    """A table with one row per view: question count, score of each model, gain of each model over the first."""
    head = ("", "questions", *names, *(f"{name} less {names[0]}" for name in names[1:]))
    rows = [(view.view.title, _questions(view), *_cells(view)) for view in views]
    return Table(head, rows, title=f"{suite.title} (0-100, 95 % interval)", wide=(1,))


def as_json(models: Sequence[Measured]) -> dict[str, Any]:
    """All views as plain JSON values, with scores from 0 to 100."""

    def numbers(one: Mean | None) -> dict[str, float] | None:
        return None if one is None else one.as_json(3) | {"questions": one.count}

    names = unlike_names(models)
    return {
        "models": names,
        "suites": {
            suite.name: {
                view.view.title: {
                    "scores": dict(zip(names, map(numbers, view.means), strict=True)),
                    "gains": dict(zip(names[1:], map(numbers, view.gains[1:]), strict=True)),
                    "over_seeds": {
                        name: round(100 * over, 3)
                        for name, over in zip(names, view.over_seeds, strict=True)
                        if over is not None
                    },
                }
                for view in views
            }
            for suite, views in measured_suites(models)
        },
    }


def _cells(figure: Figure) -> list[str]:
    values = [
        "-" if mean is None else f"{mean}{'' if over is None else f' ±{100 * over:.1f}'}"
        for mean, over in zip(figure.means, figure.over_seeds, strict=True)
    ]
    return values + ["-" if gain is None else _gain(gain) for gain in figure.gains[1:]]


def _questions(figure: Figure) -> str:
    """Number of questions of a view: one number, or a range if the models differ."""
    counts = [mean.count for mean in figure.means if mean is not None]
    if not counts:
        return "-"
    return f"{counts[0]:,}" if len(set(counts)) == 1 else f"{min(counts):,} to {max(counts):,}"


def _gain(gain: Mean) -> str:
    sign = " ▲" if gain.low > 0 else " ▼" if gain.high < 0 else ""
    return "{:+.1f} ({:+.1f} to {:+.1f})".format(*gain.percent) + sign
