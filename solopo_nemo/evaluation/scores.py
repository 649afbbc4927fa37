"""Scores of an answer, and means of scores with bootstrap intervals."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from solopo_nemo.data.answers import Stated, is_right, stated_answer
from solopo_nemo.evaluation.accuracy import wilson_interval
from solopo_nemo.evaluation.answers import LENGTH, Answer

RESAMPLES = 2000
"""Bootstrap resamples for an interval."""
CONFIDENCE = 0.95

Values = NDArray[np.float64]


@cache
def _longbench() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fuzzywuzzy asks for a faster matcher, which F1 does not use
        from lm_eval.tasks.longbench import metrics
    return metrics


def f1(answer: str, gold: Sequence[str]) -> float:
    """LongBench's token F1 between an answer and the best-matching gold answer, 0 to 1.

    The implementation is lm_eval's copy. It lowercases both texts and removes punctuation and articles.
    """
    metric = _longbench().qa_f1_score
    return max((float(metric(answer, one)) for one in gold), default=0.0)


def score_answer(response: str, gold: Sequence[str], literal: bool = False) -> dict[str, float]:
    """Scores of a response that reasons first and states its answer in the last line.

    Args:
        response: the model's text; :func:`~solopo_nemo.data.answers.stated_answer` extracts the answer. The last line
            of an :class:`Answer` that reached the token limit is not whole, and without a closing line before it the
            response states no answer.
        gold: the correct answer and its aliases.
        literal: the literal form of sub-EM; see :func:`~solopo_nemo.data.answers.is_right`.

    Returns:
        ``f1`` (LongBench's token F1, 0 to 1) and ``sub_em`` (1 if the stated answer contains a gold answer as
        whole words, else 0; the rule for choosing pairs).
    """
    cut = isinstance(response, Answer) and response.reason == LENGTH
    stated = stated_answer(response.rpartition("\n")[0] if cut else response)
    if cut and not stated.prefixed:
        stated = Stated("", prefixed=False)
    return {"f1": f1(stated.text, gold), "sub_em": float(is_right(stated, gold, literal=literal))}


@dataclass(frozen=True)
class Mean:
    """A mean and its 95 % interval.

    Attributes:
        value: unweighted mean of the group means.
        low: lower end of the interval.
        high: upper end of the interval.
        count: number of values in all groups.
    """

    value: float
    low: float
    high: float
    count: int

    @property
    def percent(self) -> tuple[float, float, float]:
        """The mean and the ends of the interval, times 100."""
        return 100 * self.value, 100 * self.low, 100 * self.high

    def __str__(self) -> str:
        return "{:.1f} ({:.0f}-{:.0f})".format(*self.percent)

    def as_json(self, digits: int) -> dict[str, float]:
        """The mean and the ends of the interval, times 100 and rounded."""
        return dict(zip(("value", "low", "high"), (round(one, digits) for one in self.percent), strict=True))


def mean(groups: Sequence[Values], questions: Sequence[Sequence[str]] | None = None, seed: int = 0) -> Mean:
    """The macro average of groups of values, with a 95 % percentile bootstrap interval over questions.

    For example, a group is a dataset. The bootstrap draws questions with replacement. All values of one question (such
    as its scores at several depths) are drawn together. Draws are stratified by the groups in which a question occurs.

    Args:
        groups: one float64 array ``[values]`` of scores or paired differences for each group; none is empty.
        questions: question ids, one list for each group and parallel to its values. None: every value belongs to a
            different question.
        seed: seed of the bootstrap.

    Raises:
        ValueError: there is no group, or a group is empty.
    """
    if not groups or not all(len(group) for group in groups):
        raise ValueError("a mean needs groups that hold values")
    sizes = np.array([len(group) for group in groups])
    drawn = _resampled(*_by_question(groups, questions), np.random.default_rng(seed)) / sizes
    low, high = np.quantile(drawn.mean(1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    value = float(np.mean([group.mean() for group in groups]))
    return Mean(value, float(low), float(high), int(sizes.sum()))


def level(groups: Sequence[Values], questions: Sequence[Sequence[str]] | None = None, seed: int = 0) -> Mean:
    """:func:`mean` for scores from 0 to 1.

    Binary scores get Wilson's interval, which has a positive width even if all scores are equal. For several groups,
    its number of questions is the effective one: that of a simple sample with the variance of the bootstrap. It is at
    most the number of values and, where all scores are equal and nothing is known of their variance, at most that of a
    simple sample of the distinct questions.
    """
    ids = [one for some in questions or () for one in some]
    if not np.isin(np.concatenate(groups), (0.0, 1.0)).all():
        return mean(groups, questions, seed)
    if len(groups) == 1 and len(set(ids)) == len(ids):
        low, high = wilson_interval(int(groups[0].sum()), len(groups[0]))
        return Mean(float(groups[0].mean()), low, high, len(groups[0]))
    sizes = np.array([len(group) for group in groups])
    drawn = _resampled(*_by_question(groups, questions), np.random.default_rng(seed)) / sizes
    value, variance = float(np.mean([group.mean() for group in groups])), float(drawn.mean(1).var())
    count = len(groups) ** 2 / (1 / sizes).sum()
    if variance:
        count = min(value * (1 - value) / variance, float(sizes.sum()))
    elif ids:
        count = min(count, len(set(ids)))
    return Mean(value, *_wilson(value, count), int(sizes.sum()))


def _wilson(share: float, count: float) -> tuple[float, float]:
    """Wilson's interval of a share of a number of questions, which need not be whole."""
    from scipy.stats import norm  # here, as its import takes over a second

    z = float(norm.ppf((1 + CONFIDENCE) / 2))
    middle, half = share + z * z / (2 * count), z * (share * (1 - share) / count + (z / (2 * count)) ** 2) ** 0.5
    low, high = ((middle + sign * half) / (1 + z * z / count) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


def _by_question(groups: Sequence[Values], questions: Sequence[Sequence[str]] | None) -> tuple[Values, Values]:
    """Sum and count of each question's values in each group, both ``[questions, groups]``."""
    sizes = [len(group) for group in groups]
    column = np.repeat(np.arange(len(groups)), sizes)
    row = np.arange(sum(sizes)) if questions is None else np.unique(np.concatenate(questions), return_inverse=True)[1]
    sums, counts = np.zeros((2, row.max() + 1, len(groups)))
    np.add.at(sums, (row, column), np.concatenate(groups))
    np.add.at(counts, (row, column), 1.0)
    return sums, counts


def _resampled(sums: Values, counts: Values, random: np.random.Generator) -> Values:
    """Group sums of the bootstrap resamples, ``[RESAMPLES, groups]``."""
    total = np.zeros((RESAMPLES, sums.shape[1]))
    for pattern in np.unique(counts, axis=0):
        alike = sums[(counts == pattern).all(1)]
        # draw counts of distinct rows: the distribution of drawing single questions, without a matrix of all draws
        distinct, times = np.unique(alike, axis=0, return_counts=True)
        total += random.multinomial(len(alike), times / len(alike), size=RESAMPLES) @ distinct
    return total
