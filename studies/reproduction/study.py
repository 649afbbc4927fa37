"""The experiments: what is trained for each, and the files that the results go to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

from solopo_nemo.runtime.errors import UserError
from studies.reproduction.methods import ALPHA, METHODS, solo
from studies.reproduction.pairs import PairPlan
from studies.reproduction.runs import BASE, QUESTIONS, STEPS, Run
from studies.reproduction.world import prompt_tokens

SWEPT = {"dpo": (1.0, 3.0, 10.0), "orpo": (0.3, 1.0, 3.0)}
"""Values of alpha; the objective's own comes out of the main table."""
SLOWER = 3e-4
"""A learning rate beside the shared one, tried on the first seed: what it does to the comparison."""
COMPARED = tuple(f"{kind}-{objective}" for objective in ("dpo", "simpo") for kind in ("long", "expand", "solo"))
"""The methods that it is tried with: ORPO's NLL term makes it less of a question there."""
TIMED = (2, 4, 8, 16, 32)
"""Long lengths whose run time is measured, as multiples of the short one."""
TIMED_STEPS = 12


@dataclass(frozen=True)
class Size:
    """How much of everything.

    Attributes:
        seeds: of every method.
        steps: of every training.
        questions: a length and seed.
        pairs: of every training.
    """

    seeds: int = 3
    steps: int = STEPS
    questions: int = QUESTIONS
    pairs: int = 800


@dataclass(frozen=True)
class Cell:
    """One training and what becomes of it.

    Attributes:
        study: ``main``, ``alpha``, ``rate`` or ``time``.
        name: within the study, without the seed.
        seed: of the run.
        run: what is trained; None for the starting model.
        pairs: that it is trained on.
        questions: a length.
        seconds: that it takes, about, on an idle core.
    """

    study: str
    name: str
    seed: int
    run: Run | None
    pairs: PairPlan | None
    questions: int
    seconds: float

    @property
    def key(self) -> str:
        """Name of its folder."""
        return f"{self.study}/{self.name}-{self.seed}"

    def result(self, work: Path) -> Path:
        """Its result, once there is one."""
        return work / "runs" / self.key / "result.json"


def all_cells(size: Size) -> list[Cell]:
    """Every training of every experiment, those of the main table first."""
    seeds = range(1, size.seeds + 1)  # 0 is the one that learning rates were chosen on
    main = [
        cell
        for seed in seeds
        for cell in (_base(seed, size), *(_trained("main", n, _run(n, seed, size), size) for n in METHODS))
    ]
    alpha = [
        _trained("alpha", f"solo-{objective}-{value:g}", _swept(objective, value, seed, size), size)
        for seed in seeds
        for objective, values in SWEPT.items()
        for value in values
        if value != ALPHA[objective]
    ]
    rate = [
        _trained("rate", name, replace(_run(name, seeds[0], size), overrides=(f"optim.lr={SLOWER:g}",)), size)
        for name in COMPARED
    ]
    time = [
        _trained("time", f"{name}-{long}x", Run(METHODS[name], 1, long=long, steps=TIMED_STEPS, lengths=()), size)
        for long in TIMED
        for name in ("solo-orpo", "expand-orpo")
    ]
    return [*main, *alpha, *rate, *time]


def choose(cells: list[Cell], only: str | None) -> list[Cell]:
    """The cells that some comma-separated patterns name, by study or by key.

    Raises:
        UserError: a pattern that names none.
    """
    if only is None:
        return cells
    patterns = only.split(",")
    for pattern in patterns:
        if not any(_matches(cell, pattern) for cell in cells):
            raise UserError(
                f"--only {pattern}: names nothing; studies are main, alpha, rate, time, and a run of one is written "
                "like main/solo-dpo-1 or main/solo-*"
            )
    return [cell for cell in cells if any(_matches(cell, pattern) for pattern in patterns)]


def _matches(cell: Cell, pattern: str) -> bool:
    return pattern == cell.study or fnmatch(cell.key, pattern)


def _base(seed: int, size: Size) -> Cell:
    return Cell("main", BASE, seed, None, None, size.questions, seconds=_SCORING)


def _run(name: str, seed: int, size: Size) -> Run:
    return Run(METHODS[name], seed, steps=size.steps, questions=size.questions)


def _swept(objective: str, value: float, seed: int, size: Size) -> Run:
    return Run(solo(objective, alpha=value), seed, steps=size.steps, questions=size.questions)


def _trained(study: str, name: str, run: Run, size: Size) -> Cell:
    pairs = PairPlan(run.method.pairs, run.seed, size.pairs, long=run.long)
    if study == "time":
        pairs = PairPlan(run.method.pairs, run.seed, size=64, questions=2000, long=run.long)
    return Cell(study, name, run.seed, run, pairs, run.questions, _estimate(run))


_OVERHEAD, _SCORING, _STEP, _THOUSAND_TOKENS = 6.0, 11.0, 0.02, 0.027
"""Seconds of an idle core: to start, convert and export; to score; of a step, and for each thousand tokens of it."""


def _estimate(run: Run) -> float:
    """Seconds of a run on an idle core."""
    shorts, longs = run.method.sequences
    tokens = 16 * (shorts * prompt_tokens(1) + longs * prompt_tokens(run.long))
    return _OVERHEAD + _SCORING * bool(run.lengths) + run.steps * (_STEP + _THOUSAND_TOKENS * tokens / 1000)
