"""The interface of an evaluation suite: cells to run, and views that aggregate their scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from solopo_nemo.evaluation.models import EvaluatedModel
from solopo_nemo.evaluation.settings import SuiteSettings
from solopo_nemo.evaluation.task import Label


class AnyCell(Protocol):
    """A unit of evaluation: a :class:`~solopo_nemo.evaluation.task.Cell` or one of lm_eval's own tasks."""

    @property
    def name(self) -> str:
        """File name of the cell, unique in its suite."""

    @property
    def metric(self) -> str:
        """Key of the main score."""

    @property
    def seed(self) -> int:
        """Sampling seed."""

    @property
    def tokens(self) -> int:
        """Approximate length of the longest prompt in tokens."""

    @property
    def limit(self) -> int | None:
        """lm_eval's limit: only the first questions are asked; None for all."""

    @property
    def labels(self) -> Mapping[str, Label]:
        """Labels that group the scores."""

    def fingerprint(self) -> str:
        """A hash of everything besides the model that determines the scores."""

    def task(self, remote: bool) -> Any:
        """The lm_eval task. ``remote`` is True if a server runs the model; requests then carry the sampling seed."""

    def record(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """The stored record of an lm_eval sample: ``id``, labels, scores and texts."""


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
