"""What a suite is: its cells, and how their scores are put together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from solopo_nemo.evaluation.models import EvaluatedModel
from solopo_nemo.evaluation.settings import SuiteSettings
from solopo_nemo.evaluation.task import Label


class AnyCell(Protocol):
    """What is run at once: a :class:`~solopo_nemo.evaluation.task.Cell`, or a task of lm_eval's own."""

    @property
    def name(self) -> str:
        """Unique in its suite."""

    @property
    def metric(self) -> str:
        """The score that counts."""

    @property
    def seed(self) -> int:
        """Of the sampling, where there is any."""

    @property
    def tokens(self) -> int:
        """Of the longest prompt, about."""

    @property
    def limit(self) -> int | None:
        """The first questions alone; None for all."""

    @property
    def labels(self) -> Mapping[str, Label]:
        """What its scores are grouped by."""

    def fingerprint(self) -> str:
        """A hash of all that its scores depend on beside the model."""

    def task(self, remote: bool) -> Any:
        """The task for lm_eval; ``remote``: a server answers, to which the seed is sent."""

    def record(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """What is kept of one of lm_eval's samples: ``id``, labels, scores, texts."""


@dataclass(frozen=True)
class View:
    """One figure of a suite's table.

    Attributes:
        title: names it.
        where: labels that the questions have.
        each: labels whose values count alike (a macro average over datasets).
    """

    title: str
    where: Mapping[str, Label] = field(default_factory=dict)
    each: tuple[str, ...] = ()


@dataclass(frozen=True)
class Suite:
    """A set of cells with the paper's settings.

    Attributes:
        name: on the command line.
        title: for people.
        note: what is measured and how, one or two sentences.
        cells: makes them for a model; raises ``UserError`` for data that are missing or wrong.
        views: of what was measured, by the values of each label.
        headline: the view that stands for the suite.
        curve: the label on the x axis of a curve, and the one that each line has; None for no curve.
        heat: the labels of a heat map's x and y axes, and of one map each; None for no map.
    """

    name: str
    title: str
    note: str
    cells: Callable[[EvaluatedModel, SuiteSettings], Iterator[AnyCell]]
    views: Callable[[Mapping[str, list[Label]]], list[View]]
    headline: str = "average"
    curve: tuple[str, str] | None = None
    heat: tuple[str, str, str] | None = None
