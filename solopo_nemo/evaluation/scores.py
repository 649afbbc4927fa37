"""Scores of an answer text, and means of many with bootstrap intervals."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from solopo_nemo.data.answers import is_right, stated_answer
from solopo_nemo.evaluation.accuracy import wilson_interval

RESAMPLES = 2000
"""Bootstrap resamples of an interval."""
CONFIDENCE = 0.95

Values = NDArray[np.float64]


@cache
def _longbench() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fuzzywuzzy asks for a faster matcher, which F1 does not use
        from lm_eval.tasks.longbench import metrics
    return metrics


def f1(answer: str, gold: Sequence[str]) -> float:
    """LongBench's token F1 of an answer with the gold answer it fits best, 0 to 1.

    The metric itself is lm_eval's copy of LongBench's: lower case, no punctuation, no articles.
    """
    metric = _longbench().qa_f1_score
    return max((float(metric(answer, one)) for one in gold), default=0.0)


def score_answer(response: str, gold: Sequence[str]) -> dict[str, float]:
    """Scores of a response that thinks first and states its answer in a last line.

    Args:
        response: the model's text; the answer is what :func:`~solopo_nemo.data.answers.stated_answer` finds in it.
        gold: the right answer and its aliases.

    Returns:
        ``f1`` (LongBench's) and ``sub_em`` (a gold answer is contained in the stated one; the paper's rule for pairs),
        both 0 to 1.
    """
    stated = stated_answer(response)
    return {"f1": f1(stated.text, gold), "sub_em": float(is_right(stated, gold))}


@dataclass(frozen=True)
class Mean:
    """A mean and its interval.

    Attributes:
        value: mean of the groups' means; every group counts alike.
        low: lower end of the 95 % percentile bootstrap interval over questions.
        high: upper end of it.
        count: values in all groups together.
    """

    value: float
    low: float
    high: float
    count: int


def mean(groups: Sequence[Values], seed: int = 0) -> Mean:
    """The macro average of groups of values, such as datasets; questions are drawn anew within each group.

    Args:
        groups: one array of scores (or of paired differences) a group, none empty.
        seed: of the resamples.

    Raises:
        ValueError: no group, or an empty one.
    """
    if not groups or not all(len(group) for group in groups):
        raise ValueError("a mean needs groups that hold values")
    random = np.random.default_rng(seed)
    drawn = np.mean([_resampled(group, random) for group in groups], axis=0)
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    value = float(np.mean([group.mean() for group in groups]))
    return Mean(value, float(low), float(high), sum(map(len, groups)))


def level(groups: Sequence[Values], seed: int = 0) -> Mean:
    """:func:`mean` of scores from 0 to 1; of right and wrong alone Wilson's interval, which is none of width 0."""
    if len(groups) == 1 and np.isin(groups[0], (0.0, 1.0)).all():
        low, high = wilson_interval(int(groups[0].sum()), len(groups[0]))
        return Mean(float(groups[0].mean()), low, high, len(groups[0]))
    return mean(groups, seed)


def _resampled(values: Values, random: np.random.Generator) -> Values:
    """Means of resamples, ``[RESAMPLES]``."""
    # by how often each distinct value comes: the same draws as of single questions, and no matrix of them
    distinct, counts = np.unique(values, return_counts=True)
    drawn = random.multinomial(len(values), counts / len(values), size=RESAMPLES)
    return np.asarray(drawn @ distinct / len(values), dtype=np.float64)
