"""Intervals and verdicts: on results whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from made_up_results import collected

from studies.reproduction.claims import FAILS, HOLDS, MARGIN, MISSING, OPEN, all_claims, decide
from studies.reproduction.collected import Collected
from studies.reproduction.statistics import Interval, contrast, over_seeds, over_seeds_and_questions

PAPER = {"base": 0.1, "short": 0.12, "long": 0.4, "expand": 0.5, "solo": 0.7, "solo-both": 0.6, "solo-kl": 0.5}


def as_the_paper_says(family: str, length: int) -> float:
    return 1.0 if length == 1 else PAPER.get(family, 0.3)


def verdicts(results: Collected) -> dict[str, str]:
    return {claim.text: claim.verdict for claim in all_claims(results)}


def test_all_claims_hold_where_everything_is_as_the_paper_says() -> None:
    results = collected(as_the_paper_says, lambda family: 6.0 if family == "solo" else 10.0)
    assert set(verdicts(results).values()) == {HOLDS}


def test_claims_fail_where_the_opposite_is_true() -> None:
    def opposite(family: str, length: int) -> float:
        if length == 1:
            return 0.5 if family == "solo" else 1.0
        return 0.9 - as_the_paper_says(family, length)

    found = verdicts(collected(opposite, lambda family: 20.0 if family == "solo" else 10.0))
    margins = found.pop("Chosen-only alignment ends with a larger reward margin")
    transfer = found.pop("Short-PO does not transfer to long contexts")
    assert margins == HOLDS  # the made-up margins are the same
    assert transfer == FAILS
    assert set(found.values()) == {FAILS}


def test_a_claim_with_different_verdicts_names_what_each_is_for() -> None:
    results = collected(as_the_paper_says)
    results.runs["main"]["expand-dpo"] = results.runs["main"]["solo-dpo"]
    claim = next(claim for claim in all_claims(results) if "Expand-Long" in claim.text)
    assert claim.verdict == "not resolved for DPO; holds for SimPO, ORPO"


def test_what_has_not_been_run_is_not_measured() -> None:
    results = collected(as_the_paper_says)
    del results.runs["main"]["solo-orpo-kl"]
    assert (
        verdicts(results)["Aligning rewards is at least as good as aligning log-probabilities (SoLo-KL), ORPO"]
        == MISSING
    )


@pytest.mark.parametrize(
    ("low", "high", "margin", "verdict"),
    [
        (0.01, 0.2, 0.0, HOLDS),
        (-0.01, 0.2, 0.0, OPEN),
        (-0.01, 0.2, MARGIN, HOLDS),
        (-0.2, -0.01, MARGIN, FAILS),
        (-0.2, 0.01, MARGIN, OPEN),
        (-0.015, -0.005, MARGIN, HOLDS),
    ],
)
def test_the_verdict_is_read_off_the_interval(low: float, high: float, margin: float, verdict: str) -> None:
    assert decide(Interval((low + high) / 2, low, high), margin) == verdict


def test_the_interval_over_seeds_is_students() -> None:
    interval = over_seeds([0.1, 0.2, 0.3])
    assert interval.mean == pytest.approx(0.2)
    assert interval.high - interval.mean == pytest.approx(4.30265 * 0.1 / math.sqrt(3), rel=1e-5)


def test_seeds_that_agree_by_chance_leave_the_questions_uncertainty() -> None:
    outcomes = [[np.array([1.0, 0.0] * 200)]] * 3
    interval = over_seeds_and_questions(outcomes)
    assert interval.high - interval.mean == pytest.approx(1.96 * 0.5 / math.sqrt(1200), rel=1e-2)


def test_differences_are_paired_by_question() -> None:
    easy = np.array([1.0] * 90 + [0.0] * 10)
    better = {seed: {8: np.where(np.arange(100) < 95, 1.0, 0.0)} for seed in (1, 2, 3)}
    worse = {seed: {8: easy} for seed in (1, 2, 3)}
    interval = contrast({"a": 1, "b": -1}, {"a": better, "b": worse}, (8,))
    assert interval is not None
    assert interval.mean == pytest.approx(0.05)
    assert interval.low > 0  # unpaired, the questions alone would make it about 0.04 wide on each side
    assert contrast({"a": 1, "c": -1}, {"a": better, "b": worse}, (8,)) is None


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        shares = np.clip(random.normal(0.5, 0.03, 3), 0, 1)
        outcomes = [[(random.random(200) < share).astype(float)] for share in shares]
        interval = over_seeds_and_questions(outcomes)
        covered += interval.low <= 0.5 <= interval.high
    assert covered / 400 > 0.93
