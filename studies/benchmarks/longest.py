"""Search for the longest prompt within a memory budget: bisection with linear interpolation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from solopo_nemo.runtime.errors import UserError

TOLERANCE = 0.01
"""Relative width of the bracket at which the search ends."""


@dataclass(frozen=True)
class Longest:
    """The result of a search.

    Attributes:
        fits: longest measured length within the budget.
        exceeds: shortest measured length above the budget.
    """

    fits: int
    exceeds: int


def find_longest(peak_of: Callable[[int], float], budget: float, start: int, unit: int) -> Longest:
    """Search for the longest length within a budget.

    Args:
        peak_of: measures the peak at a length; called once per length.
        budget: budget in the unit of the peaks.
        start: first length to try.
        unit: lengths are multiples of this number.

    Raises:
        UserError: ``unit`` tokens do not fit.
    """
    peaks: dict[int, float] = {}
    length = max(start // unit, 1) * unit
    while True:
        peaks[length] = peak_of(length)
        fits = max((n for n, peak in peaks.items() if peak <= budget), default=0)
        exceeds = min((n for n, peak in peaks.items() if peak > budget and n > fits), default=0)
        if not fits and exceeds == unit:
            raise UserError(f"{unit} tokens already take {peaks[unit]:.2f} of a budget of {budget:.2f}: raise --budget")
        if fits and exceeds and exceeds - fits <= max(unit, TOLERANCE * fits):
            return Longest(fits, exceeds)
        length = _next(peaks, budget, fits, exceeds, unit)


def _next(peaks: dict[int, float], budget: float, fits: int, exceeds: int, unit: int) -> int:
    """The next length: the interpolated crossing of the budget, kept away from the ends of the bracket."""
    if not fits:
        return max(exceeds // 2 // unit, 1) * unit
    if not exceeds:
        high = 4 * fits
        if len(peaks) == 1:  # a small first increase, because the cost of a probe is quadratic in its length
            return -(-3 * fits // 2 // unit) * unit
        guess = 1.02 * _crossing(peaks, budget, *sorted(peaks)[-2:])
        return int(min(max(guess, fits + unit), high) // unit) * unit
    gap = exceeds - fits
    guess = min(max(_crossing(peaks, budget, fits, exceeds), fits + 0.1 * gap), exceeds - 0.1 * gap)
    return min(max(round(guess / unit) * unit, fits + unit), exceeds - unit)


def _crossing(peaks: dict[int, float], budget: float, first: int, second: int) -> float:
    slope = (peaks[second] - peaks[first]) / (second - first)
    return first + (budget - peaks[first]) / slope if slope > 0 else 2.0 * second
