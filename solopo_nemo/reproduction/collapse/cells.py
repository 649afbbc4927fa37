"""The map's cells: objective, form, alpha, gap, learning rate and seed of one short run each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from solopo_nemo.reproduction.methods import Method
from solopo_nemo.reproduction.runs import Run

OBJECTIVES = {"dpo": "DPO", "simpo": "SimPO", "orpo": "ORPO", "ipo": "IPO", "slic": "SLiC"}
FORMS = {False: "both sides free", True: "short side held"}
"""By ``objective.detach_short``; the first one is the paper's."""
ALPHAS: tuple[float, ...] = (0.1, 1.0, 3.0)
VANILLA = 0.0
"""The alpha of the control: what the preference term does to short contexts by itself."""
AUTO = "auto"
GAPS = (2, 8)
"""Length of the long context as a multiple of the short one: what makes the gap small or large."""
RATES = (3e-4, 1e-3)
STEPS = 50
QUESTIONS = 256
FIRST = 1
"""The first seed: from there on the pairs are those of the paper's experiments."""


@dataclass(frozen=True)
class Cell:
    """One run of the map.

    Attributes:
        objective: its name.
        held: ``objective.detach_short``.
        alpha: a number, or ``auto``; 0 is the vanilla objective.
        gap: see :data:`GAPS`.
        rate: highest learning rate.
        seed: of pairs, order and questions.
    """

    objective: str
    held: bool
    alpha: float | str
    gap: int
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """Of its files."""
        alpha = self.alpha if isinstance(self.alpha, str) else f"{self.alpha:g}"
        form = "held" if self.held else "free"
        return f"{self.objective}-{form}-{alpha}-{self.gap}x-{self.rate:g}-{self.seed}"

    def run(self) -> Run:
        """The run by the recipe."""
        recipe = f"solo_{self.objective}"
        form = f"objective.detach_short={str(self.held).lower()}"
        alpha = f"objective.alpha={self.alpha if isinstance(self.alpha, str) else format(self.alpha, 'g')}"
        method = Method(self.name, self.name, recipe, (form, alpha, f"optim.lr={self.rate:g}"), "short", self.objective)
        return Run(method, self.seed, long=self.gap, steps=STEPS, lengths=(1, self.gap), questions=QUESTIONS)


def control(cell: Cell) -> Cell:
    """The vanilla run beside a cell, the same for both forms."""
    return replace(cell, held=False, alpha=VANILLA)


_OVERHEAD, _STEP, _LONG_STEP = 8.0, 0.08, 0.024
"""Seconds of an idle core: of a run without its steps, of a step, and more of it for each 1x of the long context."""


def core_minutes(wanted: Sequence[Cell]) -> float:
    """What cells take on one idle core, about."""
    return sum(_OVERHEAD + STEPS * (_STEP + _LONG_STEP * cell.gap * (cell.alpha != VANILLA)) for cell in wanted) / 60


def cells(seeds: int, rates: tuple[float, ...] = RATES) -> Iterator[Cell]:
    """All cells, a whole map a seed, so that one that is stopped early has whole maps."""
    for seed, rate, gap in product(range(FIRST, FIRST + seeds), reversed(rates), reversed(GAPS)):
        tried: tuple[float | str, ...] = (*ALPHAS, AUTO)
        for objective in OBJECTIVES:
            yield control(Cell(objective, False, VANILLA, gap, rate, seed))
            for held, alpha in product(FORMS, tried):
                yield Cell(objective, held, alpha, gap, rate, seed)
