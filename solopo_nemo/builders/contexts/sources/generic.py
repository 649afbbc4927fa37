"""The schema for users' own questions: `question`, `answers`, `supporting`; optional `distractors` and `id`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from solopo_nemo.builders.contexts.question import Paragraph, Question
from solopo_nemo.builders.contexts.sources.paragraphs import check_support, plain_paragraph
from solopo_nemo.data.fields import bad_field, has, identifier, required, required_list, required_text, text
from solopo_nemo.runtime.json_files import json_hash


def parse(row: dict[str, Any], where: str) -> Question:
    """Read one row. A paragraph is a string, or an object with `text` and an optional `title`.

    Raises:
        UserError: A field is missing or invalid.
    """
    asked, single = required_text(row, "question", where), isinstance(row.get("answers"), str)
    answers = (required_text(row, "answers", where),) if single else required_list(row, "answers", where)
    supporting = tuple(_paragraphs(required(row, "supporting", where), "supporting", where))
    question = Question(
        id=identifier(row["id"], where) if has(row, "id") else _derived_id(asked, supporting),
        question=asked,
        answers=answers,
        supporting=supporting,
        others=tuple(_paragraphs(row["distractors"], "distractors", where)) if has(row, "distractors") else (),
    )
    return check_support(question, where, support="supporting is empty", answers="answers")


def _paragraphs(value: Any, field: str, where: str) -> Iterator[Paragraph]:
    if not isinstance(value, list):
        raise bad_field(where, field, "must be a list of paragraphs")
    for index, item in enumerate(value):
        name = f"{field}[{index}]"
        if isinstance(item, dict):
            yield plain_paragraph(item, where, name)
        else:
            yield Paragraph("", text(item, name, where))


def _derived_id(asked: str, supporting: tuple[Paragraph, ...]) -> str:
    """Return an id that does not depend on the position of the row, because it seeds the draws."""
    return json_hash([asked, *([paragraph.title, paragraph.text] for paragraph in supporting)])[:16]
