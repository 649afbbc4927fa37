"""The search for the longest prompt, on made-up peaks."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from solopo_nemo.runtime.errors import UserError
from studies.benchmarks.longest import TOLERANCE, find_longest

CURVES: dict[str, Callable[[int], float]] = {
    "linear": lambda n: 0.6 + n / 20000,
    "steps": lambda n: 0.6 + (n // 4096) * 0.2,
    "bent": lambda n: 0.6 + max(0, n - 9000) / 15000,
    "square": lambda n: 0.5 + (n / 30000) ** 2,
    "flat_then_steep": lambda n: 0.9 if n < 15000 else 3.0,
}


@pytest.mark.parametrize("start", [256, 4096, 65536])
@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
def test_the_search_brackets_the_budget_with_few_measurements(curve: Callable[[int], float], start: int) -> None:
    tried: list[int] = []

    def peak_of(length: int) -> float:
        tried.append(length)
        return curve(length)

    found = find_longest(peak_of, budget=1.5, start=start, unit=256)
    assert curve(found.fits) <= 1.5 < curve(found.exceeds)
    assert found.exceeds - found.fits <= max(256, TOLERANCE * found.fits)
    assert all(length % 256 == 0 and length > 0 for length in tried)
    assert len(tried) == len(set(tried)) <= 20


def test_a_straight_line_takes_few_measurements() -> None:
    tried: list[int] = []
    found = find_longest(lambda n: tried.append(n) or CURVES["linear"](n), budget=1.5, start=8192, unit=256)
    assert found.fits == 17920
    assert len(tried) <= 8


def test_a_budget_that_nothing_fits_is_one_clear_error() -> None:
    with pytest.raises(UserError, match=r"256 tokens already take 2\.00 of a budget of 1\.50"):
        find_longest(lambda n: 2.0, budget=1.5, start=1024, unit=256)
