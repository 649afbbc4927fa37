"""SQuAD v1.1 and v2: the official JSON, and the flat rows of most copies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from solopo_nemo.builders.contexts.question import Paragraph, Question
from solopo_nemo.builders.contexts.sources.paragraphs import check_support
from solopo_nemo.data.fields import bad_field, identifier, records, required, required_text, text
from solopo_nemo.data.json_rows import Row
from solopo_nemo.runtime.errors import UserError


def flatten(row: Row) -> Iterator[Row]:
    """Yield one row per question for an article of the official JSON. Yield any other row unchanged.

    An invalid part of an article becomes a row with that problem.
    """
    article = row.value
    if article is None or "title" not in article or "question" in article or "paragraphs" not in article:
        yield row
        return
    place = f"{row.where}: paragraphs"
    try:
        for number, paragraph in enumerate(records(article["paragraphs"], "paragraphs", row.where)):
            questions = required(paragraph, "qas", f"{place}[{number}]")
            # a paragraph can have no questions
            for index, item in enumerate(records(questions, "qas", f"{place}[{number}]") if questions != [] else ()):
                head = {"title": article["title"], "context": paragraph.get("context")}
                yield Row(f"{place}[{number}].qas[{index}]", head | item)
    except UserError as error:
        yield Row(row.where, None, str(error).removeprefix(f"{row.where}: "))


def parse(row: dict[str, Any], where: str) -> Question:
    """Read one flat row.

    Raises:
        UserError: A field is missing or invalid.
    """
    title = required_text(row, "title", where).replace("_", " ")
    answers = tuple(dict.fromkeys(_answers(required(row, "answers", where), where)))
    question = Question(
        id=identifier(required(row, "id", where), where),
        question=required_text(row, "question", where).strip(),
        answers=answers,
        supporting=(Paragraph(title, required_text(row, "context", where)),),
        others=(),
        # unanswerable questions occur in v2 only
        answerable=bool(answers) and row.get("is_impossible") is not True,
    )
    return check_support(question, where, support="context is empty", answers="answers")


def _answers(value: Any, where: str) -> Iterator[str]:
    """Yield the answers: objects (official), an object of lists (`datasets`), or plain strings."""
    if isinstance(value, dict):
        value = required(value, "text", f"{where}: field answers")
    if not isinstance(value, list):
        raise bad_field(where, "answers", "must be a list")
    for index, item in enumerate(value):
        field = f"answers[{index}]"
        if isinstance(item, dict):
            item, field = required(item, "text", f"{where}: field {field}"), f"{field}.text"
        yield text(item, field, where)
