"""The rule that predicts which form is safe, the definition of a collapse, their agreement, and ``alpha=auto``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from solopo_nemo.training.callbacks.collapse_watch import CollapseWatch
from studies.collapse.cells import AUTO, HIGHER, SHORT, VANILLA, Cell, Outcome, by_cell, control, pooled
from studies.collapse.start import StartFacts

SMALL_GAP = math.log(2.0)
"""Nats per response token. The alignment force ends when the gap is closed, so the short side falls by the gap at most.
A token with probability 1 then keeps a probability of one half, and greedy decoding still selects it."""
HARDLY = 0.05
"""Maximum share of the gap with the long side ahead at which the long side counts as behind everywhere."""
FALLEN = 0.10
"""Minimum loss of accuracy on short contexts, relative to the vanilla policy, that counts as a collapse."""
Z = 1.96


def predicted_safe(objective: str, form: str, alpha: float, facts: StartFacts) -> bool:
    """True if the rule predicts that the alignment does not degrade the short side in a run of any length.

    - Higher side detached: the alignment lowers no side. Safe.
    - Short side detached: the alignment lowers the long side where it is ahead, and the short side follows. Safe if the
      long side is rarely ahead.
    - Both sides free: the alignment lowers the short side where it is ahead. Safe if the gap is small, or if the rest
      of the loss still balances this force after the margin is reached.
    """
    if form == HIGHER:
        return True
    if form == SHORT:
        return facts.ahead <= HARDLY
    return facts.gaps[objective] < SMALL_GAP or alpha <= facts.lasting[objective]


@dataclass(frozen=True)
class Change:
    """Difference of two shares, with its 95 % interval (normal approximation, unpaired)."""

    value: float
    half: float

    @property
    def low(self) -> float:
        """Lower end."""
        return self.value - self.half

    @property
    def high(self) -> float:
        """Upper end."""
        return self.value + self.half


def change(after: tuple[int, int], before: tuple[int, int]) -> Change:
    """Share of ``after`` minus share of ``before``, each given as right answers and questions."""
    # add one right and one wrong answer to each (Agresti and Caffo): the interval has a width at shares of 0 and 1
    shares = [(right + 1) / (asked + 2) for right, asked in (after, before)]
    spread = sum(p * (1 - p) / (asked + 2) for p, (_, asked) in zip(shares, (after, before), strict=True))
    return Change(after[0] / after[1] - before[0] / before[1], Z * math.sqrt(spread))


Controls = Mapping[Cell, Outcome]
"""Cell -> outcome of the vanilla runs."""


def controls(outcomes: Iterable[Outcome]) -> Controls:
    """The vanilla runs among the outcomes."""
    return {outcome.cell: outcome for outcome in outcomes if outcome.cell.alpha == VANILLA}


def collapsed(outcomes: Sequence[Outcome], beside: Controls) -> bool:
    """True if the accuracy of a cell on short contexts is lower by :data:`FALLEN` or more, interval included.

    The comparison is with the vanilla runs of the same pairs, seeds and learning rate. It thus excludes the effect of
    the preference term, which can be large at a high learning rate.

    Args:
        outcomes: outcomes of all seeds of one cell.
        beside: control runs; see :func:`controls`.
    """
    short, _, asked = pooled(outcomes)
    vanilla, _, asked_vanilla = pooled([beside[control(outcome.cell)] for outcome in outcomes])
    return change((short, asked), (vanilla, asked_vanilla)).high < -FALLEN


@dataclass(frozen=True)
class Agreement:
    """Number of cells by prediction (safe, unsafe) and outcome (kept, collapsed)."""

    safe_kept: int
    safe_collapsed: int
    unsafe_kept: int
    unsafe_collapsed: int


def agreement(outcomes: Sequence[Outcome], facts: Mapping[int, StartFacts], form: str) -> Agreement:
    """Count the cells of one form. A cell counts as collapsed if it collapsed at one learning rate or more.

    Args:
        outcomes: outcomes of the map.
        facts: gap -> measurements of the starting model.
        form: key of the form.
    """
    beside = controls(outcomes)
    verdicts: dict[tuple[str, float | str, int], tuple[bool, bool]] = {}
    for (objective, own, alpha, gap, _), found in by_cell(outcomes).items():
        if own != form or alpha == VANILLA:
            continue
        safe = all(predicted_safe(objective, own, o.alpha, facts[gap]) for o in found)
        _, earlier = verdicts.get((objective, alpha, gap), (safe, False))
        verdicts[objective, alpha, gap] = (safe, earlier or collapsed(found, beside))
    counts = [sum(v == pair for v in verdicts.values()) for pair in _PAIRS]
    return Agreement(*counts)


_PAIRS = ((True, False), (True, True), (False, False), (False, True))


@dataclass(frozen=True)
class Alarm:
    """Evaluation of the collapse warning with a threshold in nats: number of runs by outcome and warning."""

    least: float
    collapsed_warned: int
    collapsed_silent: int
    kept_warned: int
    kept_silent: int


def alarm(outcomes: Sequence[Outcome], least: float) -> Alarm:
    """Run the collapse watch of training over the metrics of each aligned run."""
    beside = controls(outcomes)
    counts = dict.fromkeys(((True, True), (True, False), (False, True), (False, False)), 0)
    for outcome in (outcome for outcome in outcomes if outcome.cell not in beside):
        watch = CollapseWatch(least=least)
        warned = any(watch.see(row) is not None for row in outcome.rows)
        counts[collapsed([outcome], beside), warned] += 1
    return Alarm(least, *counts.values())


@dataclass(frozen=True)
class Choice:
    """One setting with ``objective.alpha=auto``: the best swept alpha, and the automatic choice.

    Attributes:
        objective, form, gap, rate: the setting.
        best: swept alpha with the highest score.
        chosen: alpha of ``auto`` for each seed.
        scores: alpha -> share of right answers over short and long contexts.
        difference: score of ``auto`` minus score of the best swept alpha.
    """

    objective: str
    form: str
    gap: int
    rate: float
    best: float
    chosen: tuple[float, ...]
    scores: dict[float | str, float]
    difference: Change

    @property
    def reached(self) -> bool:
        """True if the interval of the difference does not lie below 0."""
        return self.difference.high >= 0


def choices(outcomes: Iterable[Outcome]) -> list[Choice]:
    """All settings with swept runs and a run with ``auto``."""
    settings: dict[tuple[str, str, int, float], dict[float | str, list[Outcome]]] = {}
    for (objective, form, alpha, gap, rate), found in by_cell(o for o in outcomes if o.cell.alpha != VANILLA).items():
        settings.setdefault((objective, form, gap, rate), {})[alpha] = found
    made = []
    for (objective, form, gap, rate), alphas in settings.items():
        swept = [alpha for alpha in alphas if not isinstance(alpha, str)]
        if AUTO not in alphas or not swept:
            continue
        sums = {alpha: pooled(found) for alpha, found in alphas.items()}
        counts = {alpha: (short + long, 2 * asked) for alpha, (short, long, asked) in sums.items()}  # both lengths
        scores = {alpha: right / asked for alpha, (right, asked) in counts.items()}
        best = max(swept, key=lambda alpha: scores[alpha])
        chosen = tuple(outcome.alpha for outcome in alphas[AUTO])
        made.append(
            Choice(objective, form, gap, rate, best, chosen, scores, change(counts[AUTO], counts[best])),
        )
    return made
