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


def mean(groups: Sequence[Values], questions: Sequence[Sequence[str]] | None = None, seed: int = 0) -> Mean:
    """The macro average of groups of values, such as datasets, with an interval from drawing the questions anew.

    Args:
        groups: one array of scores (or of paired differences) a group, none empty.
        questions: ids beside them: what belongs to one question, at several depths perhaps, is drawn together, and
            questions that are in the same groups are drawn among each other. None: each value is a question's only one.
        seed: of the resamples.

    Raises:
        ValueError: no group, or an empty one.
    """
    if not groups or not all(len(group) for group in groups):
        raise ValueError("a mean needs groups that hold values")
    sizes = np.array([len(group) for group in groups])
    drawn = _resampled(*_by_question(groups, questions), np.random.default_rng(seed)) / sizes
    low, high = np.quantile(drawn.mean(1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    value = float(np.mean([group.mean() for group in groups]))
    return Mean(value, float(low), float(high), int(sizes.sum()))


def level(groups: Sequence[Values], questions: Sequence[Sequence[str]] | None = None, seed: int = 0) -> Mean:
    """:func:`mean` of scores from 0 to 1; of right and wrong alone Wilson's interval, which is none of width 0."""
    once = questions is None or len(set(questions[0])) == len(questions[0])
    if len(groups) == 1 and once and np.isin(groups[0], (0.0, 1.0)).all():
        low, high = wilson_interval(int(groups[0].sum()), len(groups[0]))
        return Mean(float(groups[0].mean()), low, high, len(groups[0]))
    return mean(groups, questions, seed)


def _by_question(groups: Sequence[Values], questions: Sequence[Sequence[str]] | None) -> tuple[Values, Values]:
    """Sum and number of a question's values in each group, both ``[questions, groups]``."""
    sizes = [len(group) for group in groups]
    column = np.repeat(np.arange(len(groups)), sizes)
    row = np.arange(sum(sizes)) if questions is None else np.unique(np.concatenate(questions), return_inverse=True)[1]
    sums, counts = np.zeros((2, row.max() + 1, len(groups)))
    np.add.at(sums, (row, column), np.concatenate(groups))
    np.add.at(counts, (row, column), 1.0)
    return sums, counts


def _resampled(sums: Values, counts: Values, random: np.random.Generator) -> Values:
    """Sums of resamples, ``[RESAMPLES, groups]``."""
    total = np.zeros((RESAMPLES, sums.shape[1]))
    for pattern in np.unique(counts, axis=0):
        alike = sums[(counts == pattern).all(1)]
        # by how often each distinct row comes: the same draws as of single questions, and no matrix of them
        distinct, times = np.unique(alike, axis=0, return_counts=True)
        total += random.multinomial(len(alike), times / len(alike), size=RESAMPLES) @ distinct
    return total
