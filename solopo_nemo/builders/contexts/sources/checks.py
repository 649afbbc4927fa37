"""The check that all readers share."""

from __future__ import annotations

from solopo_nemo.builders.contexts.question import Paragraph, Question
from solopo_nemo.data.answers import holds_answer
from solopo_nemo.data.fields import bad_field


def check_support(question: Question, where: str, *, support: str, answers: str) -> Question:
    """Return the question, once its evidence is there and holds an answer.

    Args:
        question: What a reader made of a row.
        where: The row's place.
        support: The field that marks the evidence, and how, for the message.
        answers: The field that holds the answers as written in the text, for the message.

    Raises:
        UserError: There is no supporting paragraph, or none of them holds an answer.
    """
    if not question.answerable:
        return question
    if not question.supporting:
        raise bad_field(where, support.split()[0], f"{support}: at least one paragraph must hold the evidence")
    if not any(_holds(paragraph, question) for paragraph in question.supporting):
        raise bad_field(
            where,
            answers,
            f"{question.answers[0]!r} (or an alias) is in no supporting paragraph, give the answer as the text has it",
        )
    return question


def _holds(paragraph: Paragraph, question: Question) -> bool:
    # as it is: a span that ends inside a number has another normal form by itself
    as_written = any(answer in paragraph.text for answer in question.answers)
    return as_written or holds_answer(paragraph.normal, question.normal_answers)
