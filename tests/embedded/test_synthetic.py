"""The built-in question set: determinism, nesting, and that the text alone answers the questions."""

from __future__ import annotations

import re
from random import Random
from typing import Any

import pytest

from solopo_nemo.data.answers import ANSWER_PREFIX, is_right, stated_answer
from solopo_nemo.embedded import (
    generate_contexts,
    generate_dialogues,
    generate_evaluation,
    generate_triplets,
)
from solopo_nemo.embedded.world import build_world
from solopo_nemo.runtime.errors import UserError

# Written out here on purpose: a check that reads only text does not share the generator's tables.
NOUNS = {
    "employer": "is employed by",
    "birthplace": "was born in",
    "teacher": "was taught by",
    "home": "is based in",
    "leader": "is led by",
    "foundation": "was founded in",
    "mayor": "is governed by",
    "settlement": "was settled in",
}
FACT = re.compile(rf"([A-Z]\w+(?: [A-Z]\w+)?) ({'|'.join(NOUNS.values())}) (\d{{4}}|[A-Z]\w+(?: [A-Z]\w+)?)\.")
VERBS = {
    r"Which company employs (.+)\?": "is employed by",
    r"In which town was (.+) born\?": "was born in",
    r"Who taught (.+)\?": "was taught by",
    r"In which town is (.+) based\?": "is based in",
    r"Who leads (.+)\?": "is led by",
    r"In which year was (.+) founded\?": "was founded in",
    r"Who governs (.+)\?": "is governed by",
    r"In which year was (.+) settled\?": "was settled in",
}


def facts_of(text: str) -> list[tuple[str, str, str]]:
    return FACT.findall(text)


def solve(text: str, question: str) -> tuple[list[str], list[str]]:
    """All answers that follow from the text, and the sentences used on the way."""
    phrase, inner = next((verb, found[1]) for form, verb in VERBS.items() if (found := re.fullmatch(form, question)))
    *nouns, subject = inner.split(" of ")
    relations = [NOUNS[noun.removeprefix("the ")] for noun in reversed(nouns)] + [phrase]
    current, used = [subject], []
    for relation in relations:
        steps = [fact for fact in facts_of(text) if fact[0] in current and fact[1] == relation]
        current = [fact[2] for fact in steps]
        used += [f"{' '.join(fact)}." for fact in steps]
    return current, used


def split_prompt(messages: list[dict[str, str]]) -> tuple[list[str], str]:
    (message,) = messages
    passages, question = message["content"].split("\n\nQuestion: ")
    return [line[2:] for line in passages.splitlines() if line.startswith("- ")], question


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_questions_of_each_number_of_hops_follow_from_their_passages(hops: int) -> None:
    for record in generate_evaluation(60, 3, 20, hops):
        assert record["id"].startswith(f"{hops}hop__")
        passages, question = split_prompt(record["prompt"])
        answers, used = solve("\n".join(passages), question)
        assert answers == record["answers"]
        assert len(used) == hops


def test_distractors_do_not_name_the_answer_or_the_entities_on_the_way() -> None:
    for number in range(60):
        world = build_world(Random(number), 40, 2, "train")
        for paragraph in world.paragraphs:
            if paragraph.fact not in world.chains[0]:
                assert not any(fact.object in paragraph.text for fact in world.chains[0])


def test_every_question_has_its_own_seed() -> None:
    few, many = (list(generate_contexts(count, 7, 8, 24)) for count in (3, 9))
    assert few == many[:3]
    assert few != list(generate_contexts(3, 8, 8, 24))
    assert list(generate_evaluation(3, 7)) == list(generate_evaluation(5, 7))[:3]


def test_short_context_is_nested_in_the_long_one() -> None:
    for triplet in generate_contexts(60, seed=5, short_paragraphs=8, long_paragraphs=64):
        short, question = split_prompt(triplet["prompt_short"])
        long, same_question = split_prompt(triplet["prompt_long"])
        assert question == same_question
        assert (len(short), len(long)) == (8, 64)
        rest = iter(long)
        assert all(paragraph in rest for paragraph in short), "order differs"
        assert solve("\n".join(short), question)[0] == solve("\n".join(long), question)[0] == triplet["answers"]


def test_the_embedded_pairs_are_a_right_and_a_wrong_answer_to_their_own_question() -> None:
    triplets = list(generate_triplets(1220))
    assert len({triplet["id"] for triplet in triplets}) == 1220
    for triplet in triplets:
        short, question = split_prompt(triplet["prompt_short"])
        answers, used = solve("\n".join(short), question)
        assert triplet["chosen"].strip() == f"Facts: {' '.join(used)} {ANSWER_PREFIX} {answers[0]}."
        assert answers == triplet["answers"] == solve("\n".join(split_prompt(triplet["prompt_long"])[0]), question)[0]
        assert not is_right(stated_answer(triplet["rejected"]), answers)
    # the model's own words: nearly always a chain of thought too
    assert sum(triplet["rejected"].startswith("Facts: ") for triplet in triplets) > 1100


def test_a_part_of_the_embedded_pairs_is_the_beginning_of_all_of_them() -> None:
    few, shorter = list(generate_triplets(3)), list(generate_triplets(3, long_paragraphs=16))
    assert few == list(generate_triplets(5))[:3]
    assert [row["answers"] for row in few] == [row["answers"] for row in shorter]
    assert [len(split_prompt(row["prompt_long"])[0]) for row in shorter] == [16] * 3
    with pytest.raises(UserError, match=r"data.builtin.samples=5000: .* has 1220 samples"):
        list(generate_triplets(5000))


def test_training_and_evaluation_share_no_fact() -> None:
    def stated(prompts: list[list[dict[str, str]]]) -> set[tuple[str, str, str]]:
        return {fact for messages in prompts for fact in facts_of("\n".join(split_prompt(messages)[0]))}

    train = stated([row["prompt_long"] for row in generate_contexts(150, 0, 8, 64)])
    evaluation = stated([record["prompt"] for record in generate_evaluation(150, 0, 64)])
    assert len(train) > 5000
    assert len(evaluation) > 5000
    assert not train & evaluation


def test_evaluation_questions_follow_from_their_passages_at_every_length() -> None:
    for paragraphs in (8, 16, 32, 64, 128):
        for record in generate_evaluation(8, 1, paragraphs):
            passages, question = split_prompt(record["prompt"])
            assert len(passages) == paragraphs
            assert solve("\n".join(passages), question)[0] == record["answers"]


def test_dialogues_answer_every_turn_rightly() -> None:
    for messages in generate_dialogues(20, seed=0, paragraphs=8, questions=5):
        passages, first = split_prompt(messages[:1])
        questions = [first] + [m["content"].removeprefix("Question: ") for m in messages[2::2]]
        assert 4 <= len(questions) <= 5, "every chain, and the first one at times twice"
        for question, answer in zip(questions, messages[1::2], strict=True):
            (expected,), used = solve("\n".join(passages), question)
            assert answer["content"] == f"Facts: {' '.join(used)} {ANSWER_PREFIX} {expected}."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"paragraphs": 3}, "ask for 4 or more"),
        ({"hops": 4}, "choose 1 to 3"),
        ({"paragraphs": 4000}, "ask for fewer paragraphs"),
    ],
)
def test_impossible_sizes_are_one_clear_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        list(generate_evaluation(1, 0, **arguments))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("short", "long"), [(3, 64), (16, 8)])
def test_triplet_contexts_must_nest(short: int, long: int) -> None:
    with pytest.raises(UserError, match="the short context needs 4 or more and no more than the long one"):
        list(generate_contexts(1, 0, short, long))
