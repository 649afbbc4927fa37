"""MuSiQue in its official schema."""

from __future__ import annotations

from typing import Any

from solopo_nemo.builders.contexts.question import Paragraph, Question
from solopo_nemo.builders.contexts.sources.paragraphs import check_support, titled_paragraph
from solopo_nemo.data.fields import bad_field, has, identifier, records, required, required_text, text_list


def parse(row: dict[str, Any], where: str) -> Question:
    """Read one row.

    Raises:
        UserError: A field is missing or invalid.
    """
    aliases = text_list(row["answer_aliases"], "answer_aliases", where) if has(row, "answer_aliases") else ()
    supporting: list[Paragraph] = []
    others: list[Paragraph] = []
    for index, item in enumerate(records(required(row, "paragraphs", where), "paragraphs", where)):
        inside = f"paragraphs[{index}]"
        is_supporting = required(item, "is_supporting", f"{where}: field {inside}")
        if not isinstance(is_supporting, bool):
            raise bad_field(where, f"{inside}.is_supporting", f"is {is_supporting!r}, must be true or false")
        (supporting if is_supporting else others).append(titled_paragraph(item, where, inside))
    question = Question(
        id=identifier(required(row, "id", where), where),
        question=required_text(row, "question", where),
        answers=(required_text(row, "answer", where), *aliases),
        supporting=tuple(supporting),
        others=tuple(others),
        answerable=row.get("answerable", True) is not False,
    )
    return check_support(question, where, support="paragraphs: none has is_supporting true", answers="answer")
