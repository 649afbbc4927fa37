"""F1 against LongBench's published metric, and intervals against what statistics say."""

from __future__ import annotations

import random
import re
import string
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from solopo_nemo.evaluation.accuracy import wilson_interval
from solopo_nemo.evaluation.scores import f1, level, mean, score_answer

PIECES = """the a an The AN paris Paris PARIS, new-york New York's U.S. u.s 1,960 1960 3.5 café cafe\u0301 naïve Straße
ÎLE 東京 東 京 №5 “quoted” (x) -- ... ?! don't dont l'île and&co @home \ufb01ne ½ don\u2019t The.answer a.m. π"""
WORDS = [*PIECES.split(), "", "  ", "\t", "\n"]
PAIRS = 12_000


def published_f1(prediction: str, ground_truth: str) -> float:
    """THUDM/LongBench, metrics.py: normalize_answer, f1_score, qa_f1_score."""

    def normalize(text: str) -> str:
        text = "".join(character for character in text.lower() if character not in set(string.punctuation))
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())

    predicted, wanted = normalize(prediction).split(), normalize(ground_truth).split()
    same = sum((Counter(predicted) & Counter(wanted)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(predicted), same / len(wanted)
    return 2 * precision * recall / (precision + recall)


def test_f1_equals_the_published_metric_on_generated_pairs() -> None:
    draw = random.Random(0)
    seen = set()
    for _ in range(PAIRS):
        texts = []
        for _ in range(2):
            words = [draw.choice(WORDS) for _ in range(draw.randrange(7))]
            texts.append(draw.choice(("", " ")).join(words) if draw.random() < 0.1 else " ".join(words))
        score = f1(texts[0], [texts[1]])
        assert score == published_f1(*texts), texts
        seen.add(round(score, 3))
    assert {0.0, 1.0} < seen and len(seen) > 10  # not a list of zeros


@given(st.text(max_size=60), st.text(max_size=60))
def test_f1_equals_the_published_metric_on_any_text(prediction: str, gold: str) -> None:
    assert f1(prediction, [gold]) == published_f1(prediction, gold)


@pytest.mark.parametrize(
    ("prediction", "gold", "score"),
    [
        ("", "", 0.0),
        ("", "Paris", 0.0),
        ("Paris", "", 0.0),
        ("the", "a", 0.0),
        ("The Eiffel Tower!", "eiffel tower", 1.0),
        ("in Paris", "Paris", 2 / 3),
        ("Paris Paris", "Paris", 2 / 3),
        ("U.S.", "us", 1.0),
        ("new-york", "new york", 0.0),
        ("café", "cafe", 0.0),
    ],
)
def test_f1_by_hand(prediction: str, gold: str, score: float) -> None:
    assert f1(prediction, [gold]) == pytest.approx(score, abs=1e-12)
    assert f1(prediction, [gold]) == published_f1(prediction, gold)


def test_the_best_of_several_answers_counts_and_none_gives_zero() -> None:
    assert f1("New York", ["Boston", "New York City", "York"]) == pytest.approx(0.8)
    assert f1("anything", []) == 0.0


def test_the_stated_answer_is_scored_and_not_the_thoughts() -> None:
    response = "Paris is mentioned. So is Rome.\nThe answer is: **Rome**"
    assert score_answer(response, ["Rome"]) == {"f1": 1.0, "sub_em": 1.0}
    assert score_answer(response, ["Paris"]) == {"f1": 0.0, "sub_em": 0.0}
    assert score_answer("", ["Rome"]) == {"f1": 0.0, "sub_em": 0.0}
    # contained, as the paper's rule for pairs has it; F1 asks for no more words than needed
    assert score_answer("The answer is: the city of Rome", ["Rome"]) == {"f1": 0.5, "sub_em": 1.0}


def test_the_mean_counts_groups_alike() -> None:
    result = mean([np.array([1.0] * 90), np.array([0.0] * 10)])
    assert (result.value, result.count) == (0.5, 100)


def test_the_bootstrap_interval_is_the_normal_one_for_many_values() -> None:
    values = np.random.default_rng(1).uniform(size=4000)
    result = mean([values])
    half = 1.959964 * values.std() / len(values) ** 0.5
    assert result.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert result.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_right_and_wrong_alone_have_an_interval_of_some_width() -> None:
    result = level([np.ones(20)])
    assert (result.low, result.high) == wilson_interval(20, 20)
    assert result.low < 0.9
    assert level([np.array([0.5, 0.5])]).low == 0.5


def test_what_belongs_to_one_question_is_drawn_together() -> None:
    random = np.random.default_rng(3)
    base = random.random(200)
    # the same questions at two depths, with the same scores: no more is known than from one of them
    ids = [f"q{i}" for i in range(200)]
    one, both = mean([base], [ids]), mean([base, base], [ids, ids])
    apart = mean([base, base], [ids, [f"r{i}" for i in range(200)]])
    assert (both.value, both.count) == (pytest.approx(one.value), 400)
    assert both.high - both.low == pytest.approx(one.high - one.low, rel=0.1)
    assert apart.high - apart.low == pytest.approx((one.high - one.low) / 2**0.5, rel=0.1)
    # in one group, too; and scores that cancel leave nothing to doubt
    within = mean([np.concatenate([base, base])], [ids + ids])
    assert within.high - within.low == pytest.approx(one.high - one.low, rel=0.1)
    opposite = mean([base, 1 - base], [ids, ids])
    assert (opposite.low, opposite.high) == (pytest.approx(0.5), pytest.approx(0.5))


def test_wilsons_interval_is_for_questions_that_come_once() -> None:
    right, ids = np.array([1.0] * 30 + [0.0] * 10), [f"q{i}" for i in range(40)]
    assert level([right], [ids]) == level([right])
    twice = level([np.concatenate([right, right])], [ids + ids])
    assert twice.high - twice.low == pytest.approx(level([right]).high - level([right]).low, rel=0.15)


def test_an_average_of_cells_has_an_interval_as_its_cells_have() -> None:
    """Thirty questions of three datasets, all right: 89-100 for each, and 96-100 together; not 100-100."""
    cells = [np.ones(30)] * 3
    ids = [[f"{cell}-{number}" for number in range(30)] for cell in "abc"]
    all_right = level(cells, ids)
    assert (all_right.low, all_right.high) == pytest.approx(wilson_interval(90, 90))
    assert level(cells, [ids[0]] * 3).low == pytest.approx(wilson_interval(30, 30)[0]), "the same questions thrice"
    assert level([np.zeros(30)] * 3, ids).high == pytest.approx(1 - all_right.low)
    # a small cell makes the average less certain than all its questions are together
    assert level([np.ones(90), np.ones(3)]).low < level([np.ones(93)]).low
    # away from the ends, it is the bootstrap's
    values = (np.random.default_rng(0).random((3, 400)) < 0.6).astype(float)
    apart = [[f"{cell}-{number}" for number in range(400)] for cell in "abc"]
    wilson, bootstrap = level([*values], apart), mean([*values], apart)
    assert (wilson.low, wilson.high) == pytest.approx((bootstrap.low, bootstrap.high), abs=2e-3)


def test_nothing_has_no_mean() -> None:
    with pytest.raises(ValueError, match="hold values"):
        mean([])
    with pytest.raises(ValueError, match="hold values"):
        mean([np.array([1.0]), np.array([])])
