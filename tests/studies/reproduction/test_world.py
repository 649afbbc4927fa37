"""The world in miniature: its texts are its ids, short contexts lie in long ones, answers can be told apart."""

from __future__ import annotations

import torch

from solopo_nemo.data.answers import is_right, stated_answer
from solopo_nemo.data.tokenize import TripletEncoder
from solopo_nemo.data.triplets import Needs, Triplet
from studies.reproduction.start import make_tokenizer
from studies.reproduction.world import (
    ANSWER,
    END,
    IDS,
    SHORT_SENTENCES,
    START,
    Contexts,
    dialogues,
    draw_contexts,
    training_questions,
    words,
)


def draw(count: int = 6, sentences: int = 128, seed: int = 0) -> tuple[Contexts, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    return draw_contexts(count, sentences, generator), generator


def test_prompts_and_answers_are_tokenized_as_the_ids_they_were_made_of() -> None:
    contexts, _ = draw()
    encoder = TripletEncoder(make_tokenizer())
    pairs = zip(contexts.prompts(), contexts.answers(), strict=True)
    samples = [Triplet("a", "", prompt_long=prompt, chosen=answer) for prompt, answer in pairs]
    rows = encoder.encode(samples, Needs(("long_chosen",)))
    prompts, answers = ([row[name] for row in rows] for name in ("prompt_long", "chosen"))
    for row in range(6):
        body, fact = contexts.sentences[row].flatten().tolist(), contexts.facts[row, 0].tolist()
        assert prompts[row] == [IDS[START], *body, IDS["?"], fact[0], IDS[ANSWER]]
        assert answers[row] == [*fact[:3], IDS[END]]
        assert encoder.tokenizer.decode(answers[row], skip_special_tokens=True) == contexts.answers()[row]


def test_a_short_context_is_a_part_of_the_long_one_in_its_order() -> None:
    contexts, generator = draw()
    short = contexts.cut(SHORT_SENTENCES, generator)
    assert short.sentences.shape == (6, SHORT_SENTENCES, 4)
    for row in range(6):
        long, cut = contexts.sentences[row].tolist(), short.sentences[row].tolist()
        places = [long.index(sentence) for sentence in cut]
        assert places == sorted(places)
        facts = [sentence for sentence in cut if sentence in contexts.facts[row].tolist()]
        assert len(facts) == SHORT_SENTENCES // 2
        assert contexts.facts[row, 0].tolist() in facts


def test_keys_of_a_context_differ_and_the_asked_fact_is_where_it_is_said_to_be() -> None:
    contexts, _ = draw(sentences=256)
    for row in range(6):
        assert contexts.facts[row, :, 0].unique().numel() == 128
        assert contexts.sentences[row, contexts.asked_at[row]].equal(contexts.facts[row, 0])


def test_an_answer_is_right_for_its_own_fact_alone() -> None:
    contexts, _ = draw(count=1)
    answers = [words(fact[:3]) for fact in contexts.facts[0]]
    for number, answer in enumerate(answers):
        right = [is_right(stated_answer(other), [answer]) for other in answers]
        assert right == [place == number for place in range(len(answers))]


def test_questions_depend_on_the_seed_alone() -> None:
    first, again, other = (list(training_questions(5, seed, 16, 128)) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert all(row["answers"][0] in row["prompt_short"][0]["content"] for row in first)


def test_dialogues_label_the_answers_to_every_fact() -> None:
    ids, labels = dialogues(3, 8, torch.Generator().manual_seed(0))
    learned = labels != -100
    assert learned.sum(1).tolist() == [4 * 4] * 3
    assert labels[learned].equal(ids[learned])
    assert (labels[learned].view(-1, 4)[:, 3] == IDS[END]).all()
