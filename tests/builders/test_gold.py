from __future__ import annotations

from random import Random

import pytest

from solopo_nemo.builders.contexts.gold import gold_pair
from solopo_nemo.builders.contexts.question import Paragraph, Question

SUPPORT = (Paragraph("The Collegian", "A paper of a university."), Paragraph("University", "It was founded."))


def question(answer: str, *aliases: str) -> Question:
    return Question("q", "When was the owner of The Collegian in Houston founded?", (answer, *aliases), SUPPORT, ())


@pytest.mark.parametrize(
    ("answer", "distractor", "wrong", "kind"),
    [
        ("1960", "It began in 1960 and ended in 1987 with 12,345 votes.", "1987", "year"),
        ("March 3, 1960", "Born on March 3, 1960, died on April 4, 1999.", "April 4, 1999", "date"),
        ("June 6", "From June 6 to August 9 each year.", "August 9", "date"),
        ("35", "It has 35 of 78 rooms.", "78", "number"),
        ("6.8 inches", "It measures 21.5 metres.", "21.5 inches", "number"),
        ("Avery County", "In Houston he met Jane Doe in Dodge County.", "Dodge County", "name"),
        ("James K. Polk", "She was painted by Franklin D. Pierce. He left.", "Franklin D. Pierce", "name"),
        ("Norway", "They moved to Houston, and later to Sweden in May.", "Sweden", "name"),
    ],
)
def test_the_wrong_answer_is_of_the_same_kind(answer: str, distractor: str, wrong: str, kind: str) -> None:
    pair = gold_pair(question(answer), [[Paragraph("Elsewhere", distractor)]], Random(0))
    assert (
        pair.chosen
        == f'The passages "The Collegian" and "University" together answer the question. The answer is: {answer}'
    )
    assert (
        pair.rejected
        == f'The passages "The Collegian" and "Elsewhere" together answer the question. The answer is: {wrong}'
    )
    assert pair.kind == kind


@pytest.mark.parametrize(
    ("answer", "distractor"),
    [
        ("land-grant university", "In 1960 John Smith came."),
        ("1960", "There is no year here."),
        ("United States", "He came from the United States to Houston."),
        ("Stanley Hall", "It is named after Stanley."),
    ],
)
def test_no_answer_where_no_wrong_one_is_found(answer: str, distractor: str) -> None:
    pair = gold_pair(question(answer, "United States"), [[Paragraph("Elsewhere", distractor)]], Random(0))
    assert pair.rejected == "The passages do not answer the question. The answer is: No answer."
    assert pair.kind == "no_answer"


def test_the_first_group_is_preferred_and_the_seed_decides() -> None:
    groups = [
        [Paragraph(str(year), f"In {year} it was.") for year in range(start, start + 20)] for start in (1700, 1800)
    ]
    pairs = [gold_pair(question("1960"), groups, Random(seed)).rejected for seed in range(10)]
    assert all("The answer is: 17" in pair for pair in pairs)
    assert len(set(pairs)) > 3
    assert pairs == [gold_pair(question("1960"), groups, Random(seed)).rejected for seed in range(10)]
