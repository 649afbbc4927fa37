"""The interface of an evaluation suite: cells to run, and views that aggregate their scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from solopo_nemo.evaluation.models import EvaluatedModel
from solopo_nemo.evaluation.settings import SuiteSettings
from solopo_nemo.evaluation.task import AnyCell, Label


@dataclass(frozen=True)
class View:
    """One row of a suite's table: a mean over selected questions.

    For example, ``View("all, 8K", {"length": 8192}, ("dataset",))`` is the macro average over datasets at 8K tokens.

    Attributes:
        title: name of the row.
        where: label values that select the questions.
        each: labels that define the groups of the macro average; empty for a plain mean.
    """

    title: str
    where: Mapping[str, Label] = field(default_factory=dict)
    each: tuple[str, ...] = ()


@dataclass(frozen=True)
class Suite:
    """A benchmark with the paper's settings.

    Attributes:
        name: name on the command line.
        title: display name.
        note: what the suite measures and how, in one or two sentences.
        cells: builds the cells for a model; raises ``UserError`` for missing or invalid data.
        views: builds the views from the values of each label.
        headline: title of the view that summarizes the suite.
        curve: labels of the x axis and of the lines of the curve plot; None for no plot.
        heat: labels of the x axis, the y axis and the panels of the heat maps; None for no heat map.
    """

    name: str
    title: str
    note: str
    cells: Callable[[EvaluatedModel, SuiteSettings], Iterator[AnyCell]]
    views: Callable[[Mapping[str, list[Label]]], list[View]]
    headline: str = "average"
    curve: tuple[str, str] | None = None
    heat: tuple[str, str, str] | None = None
