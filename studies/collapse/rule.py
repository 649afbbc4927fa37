"""The rule that says in advance which form is safe, what counts as a collapse, how often they agree; alpha=auto."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from solopo_nemo.training.callbacks.collapse_watch import CollapseWatch
from studies.collapse.cells import AUTO, HIGHER, SHORT, VANILLA, Cell, Outcome, by_cell, control, pooled
from studies.collapse.start import StartFacts

SMALL_GAP = math.log(2.0)
"""Nats a response token. The pull ends when the gap is closed, so the short side falls by the gap at most; a token that
was certain then keeps a probability of one half, and greedy decoding still says it."""
HARDLY = 0.05
"""Share of the gap with the long side ahead, up to which that side is behind as good as everywhere."""
FALLEN = 0.10
"""Share of the questions on short contexts by which a collapsed policy is behind the vanilla one, at least."""
Z = 1.96


def predicted_safe(objective: str, form: str, alpha: float, facts: StartFacts) -> bool:
    """Whether the alignment is kept from pulling the short side down, whatever the length of the run.

    With the higher side held it pulls nothing down. With the short side held it pulls the long one down wherever that
    is ahead, and the short one goes along: safe where it hardly ever is. With both free it pulls the short one down
    where that is ahead: safe where the gap is small, or where the rest of the loss still holds it up when the margin is
    won.
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
    """Share of ``after`` minus share of ``before``, each right answers and questions; never of a width of 0."""
    # one right and one wrong answer added to each (Agresti and Caffo): shares of 0 and 1 have an interval too
    shares = [(right + 1) / (asked + 2) for right, asked in (after, before)]
    spread = sum(p * (1 - p) / (asked + 2) for p, (_, asked) in zip(shares, (after, before), strict=True))
    return Change(after[0] / after[1] - before[0] / before[1], Z * math.sqrt(spread))


Controls = Mapping[Cell, Outcome]
"""The vanilla runs by their cells."""


def controls(outcomes: Iterable[Outcome]) -> Controls:
    """The vanilla runs among the outcomes."""
    return {outcome.cell: outcome for outcome in outcomes if outcome.cell.alpha == VANILLA}


def collapsed(outcomes: Sequence[Outcome], beside: Controls) -> bool:
    """Whether the alignment lost the runs of a cell short contexts: by :data:`FALLEN` or more, interval included.

    Against the vanilla runs of the same pairs, seeds and learning rate: what the preference term does to short contexts
    by itself, at a rate that is high for it, is not the alignment's doing.

    Args:
        outcomes: the seeds of one cell.
        beside: see :func:`controls`.
    """
    short, _, asked = pooled(outcomes)
    vanilla, _, asked_vanilla = pooled([beside[control(outcome.cell)] for outcome in outcomes])
    return change((short, asked), (vanilla, asked_vanilla)).high < -FALLEN


@dataclass(frozen=True)
class Agreement:
    """Cells by what was predicted and what happened."""

    safe_kept: int
    safe_collapsed: int
    unsafe_kept: int
    unsafe_collapsed: int


def agreement(outcomes: Sequence[Outcome], facts: Mapping[int, StartFacts], form: str) -> Agreement:
    """Count the cells of one form; a cell is collapsed where it did so at one learning rate at least.

    Args:
        outcomes: of the map.
        facts: of the starting model, by gap.
        form: one of them.
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
    """How the collapse warning fares with a least fall in nats: runs by what happened and whether it came."""

    least: float
    collapsed_warned: int
    collapsed_silent: int
    kept_warned: int
    kept_silent: int


def alarm(outcomes: Sequence[Outcome], least: float) -> Alarm:
    """Go through each aligned run's metrics with the watch of training."""
    beside = controls(outcomes)
    counts = dict.fromkeys(((True, True), (True, False), (False, True), (False, False)), 0)
    for outcome in (outcome for outcome in outcomes if outcome.cell not in beside):
        watch = CollapseWatch(least=least)
        warned = any(watch.see(row) is not None for row in outcome.rows)
        counts[collapsed([outcome], beside), warned] += 1
    return Alarm(least, *counts.values())


@dataclass(frozen=True)
class Choice:
    """One setting with ``objective.alpha=auto``: the best alpha of the sweep, and what was chosen without one.

    Attributes:
        objective, form, gap, rate: the setting.
        best: the swept alpha with the highest score.
        chosen: what auto chose, each seed.
        scores: of each alpha: share of right answers, over short and long contexts together.
        difference: score of auto minus score of the best.
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
        """Auto is not worse than the best, as far as the interval tells."""
        return self.difference.high >= 0


def choices(outcomes: Iterable[Outcome]) -> list[Choice]:
    """All settings that have a sweep and a run with auto."""
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
