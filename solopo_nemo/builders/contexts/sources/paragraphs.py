"""Readers of paragraphs, and the evidence check of all schemas."""

from __future__ import annotations

from typing import Any

from solopo_nemo.builders.contexts.question import Paragraph, Question
from solopo_nemo.data.fields import bad_field, has, required_text
from solopo_nemo.data.normal_form import holds


def is_paragraph(row: dict[str, Any]) -> bool:
    """True if a row is a paragraph and not a question."""
    return has(row, "paragraph_text") or (has(row, "text") and not has(row, "question"))


def pool_paragraph(row: dict[str, Any], where: str) -> Paragraph:
    """Read a row of a pool: MuSiQue's `title` and `paragraph_text`, or `text` and an optional `title`.

    Raises:
        UserError: A field is missing or invalid.
    """
    return plain_paragraph(row, where) if has(row, "text") else titled_paragraph(row, where)


def plain_paragraph(item: dict[str, Any], where: str, inside: str = "") -> Paragraph:
    """Read `text` and an optional `title`. Arguments and errors are those of `required_text`."""
    title = required_text(item, "title", where, inside) if has(item, "title") else ""
    return Paragraph(title, required_text(item, "text", where, inside))


def titled_paragraph(item: dict[str, Any], where: str, inside: str = "") -> Paragraph:
    """Read `title` and `paragraph_text`. Arguments and errors are those of `required_text`."""
    title = required_text(item, "title", where, inside)
    return Paragraph(title, required_text(item, "paragraph_text", where, inside))


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
        what = (
            f"{question.answers[0]!r} (or an alias) is in no supporting paragraph, give the answer as the text has it"
        )
        raise bad_field(where, answers, what)
    return question


def _holds(paragraph: Paragraph, question: Question) -> bool:
    # compare the raw text too: an answer that ends inside a number has a different normal form on its own
    as_written = any(answer in paragraph.text for answer in question.answers)
    return as_written or holds(paragraph.normal, question.normal_answers)
