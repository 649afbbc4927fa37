"""``objective.alpha=auto`` against the best alpha of the sweep, setting by setting."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from studies.collapse.cells import AUTO, VANILLA
from studies.collapse.outcome import Outcome, pooled
from studies.collapse.rule import Change, by_cell, change


@dataclass(frozen=True)
class Choice:
    """One setting: what the sweep found and what was chosen without one.

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
        counts = {alpha: _right(found) for alpha, found in alphas.items()}
        scores = {alpha: right / asked for alpha, (right, asked) in counts.items()}
        best = max(swept, key=lambda alpha: scores[alpha])
        chosen = tuple(outcome.alpha for outcome in alphas[AUTO])
        made.append(
            Choice(objective, form, gap, rate, best, chosen, scores, change(counts[AUTO], counts[best])),
        )
    return made


def _right(outcomes: list[Outcome]) -> tuple[int, int]:
    """Right answers and questions, over both lengths."""
    short, long, asked = pooled(outcomes)
    return short + long, 2 * asked
