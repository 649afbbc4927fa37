"""The cells of the map (one short run for each objective, form, alpha, gap, rate and seed), and their outcomes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from studies.reproduction.methods import Method
from studies.reproduction.pairs import PairPlan
from studies.reproduction.runs import Run

OBJECTIVES = {"dpo": "DPO", "simpo": "SimPO", "orpo": "ORPO", "ipo": "IPO", "slic": "SLiC"}


@dataclass(frozen=True)
class Form:
    """A form of the alignment: the sides through which its gradient flows.

    Attributes:
        title: title on the page.
        options: options of the objective that are true.
    """

    title: str
    options: tuple[str, ...]


FORMS = {
    "free": Form("both sides free", ()),
    "short": Form("short side held", ("detach_short",)),
    "higher": Form("higher side held", ("detach_higher",)),
}
"""The forms by name. The first one is that of the paper."""
FREE, SHORT, HIGHER = FORMS
ALPHAS: tuple[float, ...] = (0.1, 1.0, 3.0)
VANILLA = 0.0
"""Alpha of the control run, which shows the effect of the preference term alone."""
AUTO = "auto"
GAPS = (2, 8)
"""Lengths of the long context as multiples of the short one. A longer context has a larger reward gap."""
RATES = (3e-4, 1e-3)
STEPS = 50
QUESTIONS = 256
_OVERHEAD, _STEP, _LONG_STEP = 8.0, 0.08, 0.024
"""Seconds on an idle core: overhead of a run, time per step, and additional time per step for each 1x of context."""
FIRST = 1
"""The first seed. Its pairs are those of the reproduction study."""


@dataclass(frozen=True)
class Cell:
    """One run of the map.

    Attributes:
        objective: name of the objective.
        form: key of :data:`FORMS`.
        alpha: a number, or ``auto``; 0 is the vanilla objective.
        gap: length of the long context; see :data:`GAPS`.
        rate: peak learning rate.
        seed: seed of the pairs, their order and the questions.
    """

    objective: str
    form: str
    alpha: float | str
    gap: int
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """Stem of its files."""
        alpha = self.alpha if isinstance(self.alpha, str) else f"{self.alpha:g}"
        return f"{self.objective}-{self.form}-{alpha}-{self.gap}x-{self.rate:g}-{self.seed}"

    @property
    def pairs(self) -> PairPlan:
        """The pairs of the training."""
        return PairPlan("short", self.seed, long=self.gap)

    @property
    def seconds(self) -> float:
        """Estimated seconds on an idle core."""
        return _OVERHEAD + STEPS * (_STEP + _LONG_STEP * self.gap * (self.alpha != VANILLA))

    def run(self) -> Run:
        """The run of the recipe."""
        recipe = f"solo_{self.objective}"
        # set every option, because the presets of the embedded model set detach_short
        every = sorted({option for form in FORMS.values() for option in form.options})
        form = [f"objective.{option}={str(option in FORMS[self.form].options).lower()}" for option in every]
        alpha = f"objective.alpha={self.alpha if isinstance(self.alpha, str) else format(self.alpha, 'g')}"
        method = Method(
            self.name, self.name, recipe, (*form, alpha, f"optim.lr={self.rate:g}"), "short", self.objective
        )
        return Run(method, self.seed, long=self.gap, steps=STEPS, lengths=(1, self.gap), questions=QUESTIONS)


def control(cell: Cell) -> Cell:
    """The vanilla control run of a cell. All forms share it."""
    return replace(cell, form=FREE, alpha=VANILLA)


def cells(seeds: int, rates: tuple[float, ...] = RATES) -> Iterator[Cell]:
    """All cells, ordered by seed, so that an interrupted study contains complete maps."""
    for seed, rate, gap in product(range(FIRST, FIRST + seeds), reversed(rates), reversed(GAPS)):
        tried: tuple[float | str, ...] = (*ALPHAS, AUTO)
        for objective in OBJECTIVES:
            yield control(Cell(objective, FREE, VANILLA, gap, rate, seed))
            for form, alpha in product(FORMS, tried):
                yield Cell(objective, form, alpha, gap, rate, seed)


@dataclass(frozen=True)
class Outcome:
    """The result of a cell.

    Attributes:
        cell: the cell.
        alpha: value of alpha in training.
        questions: number of questions per length.
        short, long: number of right answers on short and long contexts.
        curves: metrics of every step.
    """

    cell: Cell
    alpha: float
    questions: int
    short: int
    long: int
    curves: dict[str, list[float]]

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Outcome:
        """Create an outcome from plain JSON values."""
        return cls(**{**values, "cell": Cell(**values["cell"])})

    @property
    def rows(self) -> list[dict[str, float]]:
        """The curves as rows of ``metrics.jsonl``."""
        steps = len(self.curves["logps/chosen"])
        return [{"step": i + 1} | {name: curve[i] for name, curve in self.curves.items()} for i in range(steps)]


def pooled(outcomes: Sequence[Outcome]) -> tuple[int, int, int]:
    """Sums over the seeds of a cell: right answers on short and on long contexts, and questions per length."""
    return sum(o.short for o in outcomes), sum(o.long for o in outcomes), sum(o.questions for o in outcomes)


Key = tuple[str, str, float | str, int, float]
"""A cell without its seed."""


def key(cell: Cell) -> Key:
    """The key of a cell, without the seed."""
    return cell.objective, cell.form, cell.alpha, cell.gap, cell.rate


def by_cell(outcomes: Iterable[Outcome]) -> dict[Key, list[Outcome]]:
    """Group outcomes by cell."""
    found: dict[Key, list[Outcome]] = {}
    for outcome in outcomes:
        found.setdefault(key(outcome.cell), []).append(outcome)
    return found
