"""Which answer a response states, and whether it is right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from solopo_nemo.data.answers import Stated, is_right, stated_answer


@pytest.mark.parametrize(
    ("response", "text", "prefixed"),
    [
        ("Facts. The answer is: 1960", "1960", True),
        ("The answer is: 1959. Wait.\nThe answer is: 1960.\nDone", "1960.", True),
        ("**The answer is:** 1960", "1960", True),
        ("The final answer is \\boxed{\\text{1960}}.", "1960", True),
        ("<think>The answer is: 1959</think>1960", "1960", False),
        ("<think>The answer is: 1959", "", False),
        ("1958</think><think>a<think>b</think>1959</think>19<THINK>c</think>60<think>d", "1960", False),
        ("The answer is:\n\n1960", "1960", True),
        ("THE ANSWER IS: 1960", "1960", True),
        ("It opened in 1959.\nSo the answer is 1960\n", "1960", True),
        ("It was 1960. The answer is:", "", False),
        ("So 1960.\n**", "So 1960.", False),
        ('{"answer": "Oslo\\ud800"}', "Oslo?", True),
        ("", "", False),
    ],
)
def test_the_last_stated_answer_counts_or_the_last_line(response: str, text: str, prefixed: bool) -> None:
    assert stated_answer(response) == Stated(text, prefixed)


def test_a_thought_that_begins_again_and_again_is_read_once() -> None:
    """By the square of its length it would take an hour."""
    assert stated_answer("The answer is: 1960\n" + "<think>" * 300_000) == Stated("1960", True)


def test_every_row_of_the_table_is_judged_as_it_says() -> None:
    lines = Path(__file__).with_name("answers.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    wrong = [row["case"] for row in rows if is_right(stated_answer(row["response"]), row["answers"]) != row["right"]]
    assert not wrong and {row["right"] for row in rows} == {True, False}


@pytest.mark.parametrize(
    ("response", "gold", "right"),
    [("The answer is: 19600", "1960", True), ("The answer is: No answer.", "no", True), ("So Oslo", "Bergen", False)],
)
def test_the_literal_form_finds_an_answer_anywhere(response: str, gold: str, right: bool) -> None:
    assert is_right(stated_answer(response), [gold], literal=True) is right
    assert not is_right(stated_answer(response), [gold])


def test_an_answer_is_right_if_it_holds_a_gold_answer_or_alias() -> None:
    gold = ["The United States", "U.S."]
    assert is_right(Stated("the  united states of America!", True), gold)
    assert is_right(Stated("It is the US.", True), gold)
    assert not is_right(Stated("United Kingdom", True), gold)
    assert not is_right(Stated("", True), gold)
    assert is_right(Stated("São Tomé", True), ["Sao Tome"])
