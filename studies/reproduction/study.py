"""The experiments: their trainings and the paths of their results."""

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
"""Swept values of alpha. The result at the objective's own alpha is that of the main table."""
SLOWER = 3e-4
"""A lower learning rate, run on the first seed to show its effect on the comparison."""
COMPARED = tuple(f"{kind}-{objective}" for objective in ("dpo", "simpo") for kind in ("long", "expand", "solo"))
"""Methods with the lower learning rate. ORPO is omitted, because its NLL term makes it less sensitive."""
TIMED = (2, 4, 8, 16, 32)
"""Long lengths of the run-time study, as multiples of the short one."""
TIMED_STEPS = 12


@dataclass(frozen=True)
class Size:
    """The size of the experiments.

    Attributes:
        seeds: seeds per method.
        steps: optimizer steps per training.
        questions: questions per length and seed.
        pairs: pairs per training.
    """

    seeds: int = 3
    steps: int = STEPS
    questions: int = QUESTIONS
    pairs: int = 800


@dataclass(frozen=True)
class Cell:
    """One training with its pairs and result.

    Attributes:
        study: ``main``, ``alpha``, ``rate`` or ``time``.
        name: name in the study, without the seed.
        seed: seed of the run.
        run: the training; None for the starting model.
        pairs: pairs of the training; None for the starting model.
        questions: questions per length.
        seconds: estimated seconds on an idle core.
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
        """Path of its result."""
        return work / "runs" / self.key / "result.json"


def all_cells(size: Size) -> list[Cell]:
    """All trainings of all experiments, those of the main table first."""
    seeds = range(1, size.seeds + 1)  # seed 0 was used to choose the learning rate
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
    """Select cells by comma-separated patterns of studies or keys.

    Raises:
        UserError: a pattern matches no cell.
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
"""Seconds on an idle core: start, conversion and export; scoring; overhead of a step; a thousand tokens of a step."""


def _estimate(run: Run) -> float:
    """Estimated seconds of a run on an idle core."""
    shorts, longs = run.method.sequences
    tokens = 16 * (shorts * prompt_tokens(1) + longs * prompt_tokens(run.long))
    return _OVERHEAD + _SCORING * bool(run.lengths) + run.steps * (_STEP + _THOUSAND_TOKENS * tokens / 1000)
