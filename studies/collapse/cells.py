"""The map's cells (objective, form, alpha, gap, learning rate and seed of one short run each), and their outcomes."""

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
    """Through which sides the alignment's gradient flows.

    Attributes:
        title: on the page.
        options: of the objective, that are on.
    """

    title: str
    options: tuple[str, ...]


FORMS = {
    "free": Form("both sides free", ()),
    "short": Form("short side held", ("detach_short",)),
    "higher": Form("higher side held", ("detach_higher",)),
}
"""The first one is the paper's."""
FREE, SHORT, HIGHER = FORMS
ALPHAS: tuple[float, ...] = (0.1, 1.0, 3.0)
VANILLA = 0.0
"""The alpha of the control: what the preference term does to short contexts by itself."""
AUTO = "auto"
GAPS = (2, 8)
"""Length of the long context as a multiple of the short one: what makes the gap small or large."""
RATES = (3e-4, 1e-3)
STEPS = 50
QUESTIONS = 256
_OVERHEAD, _STEP, _LONG_STEP = 8.0, 0.08, 0.024
"""Seconds of an idle core: of a run without its steps, of a step, and more of it for each 1x of the long context."""
FIRST = 1
"""The first seed: from there on the pairs are those of the paper's experiments."""


@dataclass(frozen=True)
class Cell:
    """One run of the map.

    Attributes:
        objective: its name.
        form: one of :data:`FORMS`.
        alpha: a number, or ``auto``; 0 is the vanilla objective.
        gap: see :data:`GAPS`.
        rate: highest learning rate.
        seed: of pairs, order and questions.
    """

    objective: str
    form: str
    alpha: float | str
    gap: int
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """Of its files."""
        alpha = self.alpha if isinstance(self.alpha, str) else f"{self.alpha:g}"
        return f"{self.objective}-{self.form}-{alpha}-{self.gap}x-{self.rate:g}-{self.seed}"

    @property
    def pairs(self) -> PairPlan:
        """Those that it is trained on."""
        return PairPlan("short", self.seed, long=self.gap)

    @property
    def seconds(self) -> float:
        """That it takes on an idle core, about."""
        return _OVERHEAD + STEPS * (_STEP + _LONG_STEP * self.gap * (self.alpha != VANILLA))

    def run(self) -> Run:
        """The run by the recipe."""
        recipe = f"solo_{self.objective}"
        # the embedded presets hold the short side: every option is given
        every = sorted({option for form in FORMS.values() for option in form.options})
        form = [f"objective.{option}={str(option in FORMS[self.form].options).lower()}" for option in every]
        alpha = f"objective.alpha={self.alpha if isinstance(self.alpha, str) else format(self.alpha, 'g')}"
        method = Method(
            self.name, self.name, recipe, (*form, alpha, f"optim.lr={self.rate:g}"), "short", self.objective
        )
        return Run(method, self.seed, long=self.gap, steps=STEPS, lengths=(1, self.gap), questions=QUESTIONS)


def control(cell: Cell) -> Cell:
    """The vanilla run beside a cell, the same for all forms."""
    return replace(cell, form=FREE, alpha=VANILLA)


def cells(seeds: int, rates: tuple[float, ...] = RATES) -> Iterator[Cell]:
    """All cells, a whole map a seed, so that one that is stopped early has whole maps."""
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

    @property
    def rows(self) -> list[dict[str, float]]:
        """The curves as rows of ``metrics.jsonl``."""
        steps = len(self.curves["logps/chosen"])
        return [{"step": i + 1} | {name: curve[i] for name, curve in self.curves.items()} for i in range(steps)]


def pooled(outcomes: Sequence[Outcome]) -> tuple[int, int, int]:
    """Right answers on short and on long contexts, and questions, over the seeds of one cell."""
    return sum(o.short for o in outcomes), sum(o.long for o in outcomes), sum(o.questions for o in outcomes)


Key = tuple[str, str, float | str, int, float]
"""A cell without its seed."""


def key(cell: Cell) -> Key:
    """What the runs of one cell share."""
    return cell.objective, cell.form, cell.alpha, cell.gap, cell.rate


def by_cell(outcomes: Iterable[Outcome]) -> dict[Key, list[Outcome]]:
    """The seeds of each cell together."""
    found: dict[Key, list[Outcome]] = {}
    for outcome in outcomes:
        found.setdefault(key(outcome.cell), []).append(outcome)
    return found
