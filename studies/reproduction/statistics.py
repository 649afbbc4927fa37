"""Intervals over seeds and questions, for all results of the page.

Each seed has its own pairs, order of samples and questions. All methods of a seed get the same questions, so
differences are paired by question. The 95 % interval of a mean over seeds is Student's t interval over the values of
the seeds, which differ in training and questions. It is widened to the interval over questions if that is wider,
because a few seeds can be close together by chance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

_LEVEL = 0.975  # two-sided 95 %


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float

    def clipped(self, low: float, high: float) -> Interval:
        """The interval, limited to the range of possible values."""
        return Interval(self.mean, max(self.low, low), min(self.high, high))


def over_seeds(values: Sequence[float], question_variances: Sequence[float] = ()) -> Interval:
    """The mean over seeds with its interval.

    Args:
        values: one value per seed.
        question_variances: variance of each value over questions; empty for values without questions.
    """
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        half = stats.norm.ppf(_LEVEL) * math.sqrt(sum(question_variances)) if question_variances else math.inf
        return Interval(mean, mean - half, mean + half)
    half = stats.t.ppf(_LEVEL, count - 1) * float(np.std(values, ddof=1)) / math.sqrt(count)
    if question_variances:
        half = max(half, stats.norm.ppf(_LEVEL) * math.sqrt(sum(question_variances)) / count)
    return Interval(mean, mean - half, mean + half)


def over_seeds_and_questions(outcomes: Sequence[Sequence[np.ndarray]]) -> Interval:
    """The mean over seeds, lengths and questions with its interval.

    Args:
        outcomes: for each seed and length, fp64 ``[questions]``.
    """
    values = [float(np.mean([part.mean() for part in parts])) for parts in outcomes]
    variances = [
        sum(float(part.var(ddof=1)) / len(part) for part in parts) / len(parts) ** 2 if len(parts[0]) > 1 else 0.0
        for parts in outcomes
    ]
    return over_seeds(values, variances)


def contrast(
    weights: Mapping[str, float], outcomes: Mapping[str, Mapping[int, Mapping[int, np.ndarray]]], lengths: Sequence[int]
) -> Interval | None:
    """A weighted sum of methods, paired by question and averaged over lengths.

    Args:
        weights: method -> weight; the weights of a comparison sum to zero.
        outcomes: method -> seed -> length -> fp64 ``[questions]``.
        lengths: context lengths.

    Returns:
        The interval; None if a method has not been run.
    """
    if not all(outcomes.get(name) for name in weights):
        return None
    seeds = sorted(set.intersection(*(set(outcomes[name]) for name in weights)))
    if not seeds:
        return None
    return over_seeds_and_questions(
        [
            [
                np.sum([weight * outcomes[name][seed][length] for name, weight in weights.items()], axis=0)
                for length in lengths
            ]
            for seed in seeds
        ]
    )
