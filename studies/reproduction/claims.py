"""The paper's claims, with a verdict from the intervals: holds, does not hold, or not resolved."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from studies.reproduction.collected import Collected
from studies.reproduction.methods import OBJECTIVES
from studies.reproduction.runs import BASE
from studies.reproduction.statistics import Interval, contrast, over_seeds

HOLDS, FAILS, OPEN, MISSING = "holds", "does not hold", "not resolved", "not measured"
LONG_LENGTHS = (4, 8, 16)
"""Lengths that count as long. The paper's RULER lengths also begin at about four times the short prompts."""
MARGIN = 0.02
"""Maximum deficit in accuracy that counts as "at least as good"."""
COST_MARGIN = 0.15
"""Maximum relative excess of measured time over the cost model that counts as agreement."""


@dataclass(frozen=True)
class Comparison:
    """One comparison of a claim.

    Attributes:
        what: name of the comparison.
        interval: interval of the difference; a positive difference supports the claim. None if not measured.
        verdict: one of the four verdicts.
        unit: unit of the interval: ``points`` of accuracy, or empty.
    """

    what: str
    interval: Interval | None
    verdict: str
    unit: str = "points"


@dataclass(frozen=True)
class Claim:
    """A claim of the paper.

    Attributes:
        text: text of the claim.
        where: location in the paper.
        rule: condition under which it holds.
        comparisons: comparisons that decide it.
    """

    text: str
    where: str
    rule: str
    comparisons: tuple[Comparison, ...]

    @property
    def verdict(self) -> str:
        """The verdict that all comparisons share, or the objectives of each verdict."""
        found = dict.fromkeys(comparison.verdict for comparison in self.comparisons)
        if len(found) == 1:
            return next(iter(found))
        return "; ".join(
            f"{verdict} for {', '.join(c.what for c in self.comparisons if c.verdict == verdict)}" for verdict in found
        )


def decide(interval: Interval | None, margin: float = 0.0) -> str:
    """The verdict from the interval of a difference, for "more than" (margin 0) or "at least, up to a margin"."""
    if interval is None:
        return MISSING
    if interval.low > -margin:
        return HOLDS
    return FAILS if interval.high < 0 else OPEN


def all_claims(results: Collected) -> list[Claim]:
    """All claims with their verdicts."""
    strictly = "the interval of the difference lies above 0"
    at_least = f"the interval of the difference lies above {-100 * MARGIN:g} points"
    long = ", ".join(f"{length}x" for length in LONG_LENGTHS) + " together"
    return [
        Claim(
            "SoLoPO is at least as good as Long-PO on long contexts",
            "Section 4.1, Table 3",
            f"SoLo less Long at {long}: {at_least}",
            _each(results, lambda o: {f"solo-{o}": 1, f"long-{o}": -1}, MARGIN),
        ),
        Claim(
            "Short-PO does not transfer to long contexts",
            "Section 4.1, Table 3",
            f"half of SoLo's gain over the starting model less Short's gain at {long}: {strictly}",
            _each(results, lambda o: {f"solo-{o}": 0.5, BASE: 0.5, f"short-{o}": -1}),
        ),
        Claim(
            "Chosen-only alignment is at least as good as aligning both answers",
            "Section 4.2, Figure 2(a)",
            f"chosen-only less both at {long}: {at_least}",
            _each(results, lambda o: {f"solo-{o}": 1, f"solo-{o}-both": -1}, MARGIN),
        ),
        Claim(
            "Chosen-only alignment ends with a larger reward margin",
            "Appendix G, Figure 10(a)",
            "reward margin on short prompts, chosen-only less both, over the last tenth of the steps: " + strictly,
            tuple(_margins(results)),
        ),
        Claim(
            "SoLoPO is better than Expand-Long-PO",
            "Section 4.2, Figure 2(b)",
            f"SoLo less Expand-Long at {long}: {strictly}",
            _each(results, lambda o: {f"solo-{o}": 1, f"expand-{o}": -1}),
        ),
        Claim(
            "Aligning rewards is at least as good as aligning log-probabilities (SoLo-KL), ORPO",
            "Section 4.2, equation 10",
            f"SoLo less SoLo-KL at {long}: {at_least}",
            _each(results, lambda o: {f"solo-{o}": 1, f"solo-{o}-kl": -1}, MARGIN, ("orpo",)),
        ),
        Claim(
            "SoLoPO keeps what the model could on short contexts",
            "Section 4.1",
            f"SoLo less the starting model at 1x: {at_least}",
            _each(results, lambda o: {f"solo-{o}": 1, BASE: -1}, MARGIN, lengths=(1,)),
        ),
        Claim(
            "SoLoPO costs less than Long-PO, as the cost model says",
            "Section 4.3, Appendix G.4",
            "SoLo's share of Long's training time: its interval lies below 1, and its mean not more than "
            f"{100 * COST_MARGIN:g} % above the share that the cost model gives",
            tuple(_costs(results)),
        ),
    ]


def _each(
    results: Collected,
    weights: Callable[[str], dict[str, float]],
    margin: float = 0.0,
    objectives: Iterable[str] = tuple(OBJECTIVES),
    lengths: tuple[int, ...] = LONG_LENGTHS,
) -> tuple[Comparison, ...]:
    outcomes = results.outcomes()
    intervals = {objective: contrast(weights(objective), outcomes, lengths) for objective in objectives}
    return tuple(Comparison(OBJECTIVES[o], interval, decide(interval, margin)) for o, interval in intervals.items())


def _margins(results: Collected) -> Iterable[Comparison]:
    for objective, title in OBJECTIVES.items():
        one, both = (results.last(f"solo-{objective}{kind}", "rewards/margin") for kind in ("", "-both"))
        seeds = sorted(set(one) & set(both))
        interval = over_seeds([one[seed] - both[seed] for seed in seeds]) if seeds else None
        yield Comparison(title, interval, decide(interval), unit="")


def _costs(results: Collected) -> Iterable[Comparison]:
    for objective, title in OBJECTIVES.items():
        names = f"solo-{objective}", f"long-{objective}"
        measured = results.ratio("main", *names, "seconds")
        if measured is None:
            yield Comparison(title, None, MISSING, unit="")
            continue
        modelled = results.results("main", names[0])[0].flops / results.results("main", names[1])[0].flops
        verdict = OPEN
        if measured.low > 1 or measured.low > modelled * (1 + COST_MARGIN):
            verdict = FAILS
        elif measured.high < 1 and measured.mean <= modelled * (1 + COST_MARGIN):
            verdict = HOLDS
        what = f"{title}, {modelled:.2f} by the cost model"
        yield Comparison(what, measured, verdict, unit="")
