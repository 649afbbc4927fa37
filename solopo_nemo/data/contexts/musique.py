"""MuSiQue in its official JSON lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from solopo_nemo.data.answers import holds_answer
from solopo_nemo.data.contexts.question import BadRow, Paragraph, Question
from solopo_nemo.data.fields import bad_field, has, identifier, records, required, text, text_list
from solopo_nemo.data.rows import read_rows
from solopo_nemo.errors import UserError


def read_musique(path: Path) -> Iterator[Question | BadRow]:
    """Yield the questions of a MuSiQue file in its order, bad rows in their places.

    A row is bad when it cannot be read, lacks a field, has no supporting paragraph or an answer that is in none of
    them, or repeats an id.

    Raises:
        UserError: The file is missing or of an unknown kind.
    """
    seen: set[str] = set()
    for row in read_rows(path):
        try:
            question = _parse(row.fields(), row.where)
            if question.id in seen:
                raise bad_field(row.where, "id", f"{question.id!r} was used by an earlier row, ids must be unique")
        except UserError as error:
            yield BadRow(str(error), row.value)
            continue
        seen.add(question.id)
        yield question


def read_pool(path: Path) -> Iterator[Paragraph]:
    """Yield the paragraphs of a pool file, rows of `title` and `paragraph_text`.

    Raises:
        UserError: The first row that is not one, or the file cannot be read.
    """
    for row in read_rows(path):
        yield _paragraph(row.fields(), row.where, "")


def _parse(row: dict[str, Any], where: str) -> Question:
    aliases = text_list(row["answer_aliases"], "answer_aliases", where) if has(row, "answer_aliases") else ()
    supporting: list[Paragraph] = []
    others: list[Paragraph] = []
    for index, item in enumerate(records(required(row, "paragraphs", where), "paragraphs", where)):
        prefix = f"paragraphs[{index}]."
        is_supporting = required(item, "is_supporting", f"{where}: field {prefix[:-1]}")
        if not isinstance(is_supporting, bool):
            raise bad_field(where, f"{prefix}is_supporting", f"is {is_supporting!r}, must be true or false")
        (supporting if is_supporting else others).append(_paragraph(item, where, prefix))
    question = Question(
        id=identifier(required(row, "id", where), where),
        question=text(required(row, "question", where), "question", where),
        answers=(text(required(row, "answer", where), "answer", where), *aliases),
        supporting=tuple(supporting),
        others=tuple(others),
        answerable=row.get("answerable", True) is not False,
    )
    if question.answerable:
        _check_support(question, where)
    return question


def _check_support(question: Question, where: str) -> None:
    if not question.supporting:
        raise bad_field(where, "paragraphs", "none has is_supporting true, at least one must hold the evidence")
    if not any(holds_answer(paragraph.normal, question.normal_answers) for paragraph in question.supporting):
        what = (
            f"{question.answers[0]!r} (or an alias) is in no supporting paragraph, add it to answer_aliases as written"
        )
        raise bad_field(where, "answer", what)


def _paragraph(item: dict[str, Any], where: str, prefix: str) -> Paragraph:
    place = f"{where}: field {prefix[:-1]}" if prefix else where
    return Paragraph(
        title=text(required(item, "title", place), f"{prefix}title", where),
        text=text(required(item, "paragraph_text", place), f"{prefix}paragraph_text", where),
    )
