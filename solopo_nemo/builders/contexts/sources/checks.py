"""The evidence check of all readers."""

from __future__ import annotations

from solopo_nemo.builders.contexts.question import Paragraph, Question
from solopo_nemo.data.fields import bad_field
from solopo_nemo.data.normal_form import holds


def check_support(question: Question, where: str, *, support: str, answers: str) -> Question:
    """Return the question if its evidence contains an answer.

    Args:
        question: The question of a row.
        where: Location of the row, for the message.
        support: Field that marks the evidence and its problem, for the message.
        answers: Field of the answers, for the message.

    Raises:
        UserError: There is no supporting paragraph, or no supporting paragraph contains an answer.
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
    # compare the raw text too: an answer that ends inside a number has a different normal form on its own
    as_written = any(answer in paragraph.text for answer in question.answers)
    return as_written or holds(paragraph.normal, question.normal_answers)
