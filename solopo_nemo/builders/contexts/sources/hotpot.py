"""HotpotQA and 2WikiMultihopQA: the official JSON, and the columns of their `datasets` versions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from solopo_nemo.builders.contexts.question import Paragraph, Question
from solopo_nemo.builders.contexts.sources.paragraphs import check_support
from solopo_nemo.data.fields import bad_field, has, identifier, required, required_text, text
from solopo_nemo.data.normal_form import normalize

# the answer of a comparison is implied by the evidence, so it is not searched in the text
_IMPLIED = frozenset({"yes", "no"})


def parse(row: dict[str, Any], where: str) -> Question:
    """Read one row.

    Raises:
        UserError: A field is missing or invalid.
    """
    facts = {title for title, _ in _pairs(row, "supporting_facts", ("sent_id",), where)}
    supporting: list[Paragraph] = []
    others: list[Paragraph] = []
    for index, (title, sentences) in enumerate(_pairs(row, "context", ("sentences", "content"), where)):
        parts = _sentences(sentences, f"context[{index}][1]", where)
        if not parts:
            # both datasets contain a few paragraphs without text
            if title in facts:
                raise bad_field(where, f"context[{index}]", f"{title!r} is evidence and must hold text")
            continue
        (supporting if title in facts else others).append(Paragraph(title, " ".join(parts)))
    if missing := facts - {paragraph.title for paragraph in supporting}:
        raise bad_field(where, "supporting_facts", f"{min(missing)!r} is no title in context")
    question = Question(
        id=identifier(required(row, "_id" if has(row, "_id") else "id", where), where),
        question=required_text(row, "question", where),
        answers=(required_text(row, "answer", where),),
        supporting=tuple(supporting),
        others=tuple(others),
    )
    if supporting and normalize(question.answers[0]) in _IMPLIED:
        return question
    return check_support(question, where, support="supporting_facts is empty", answers="answer")


def _sentences(value: Any, field: str, where: str) -> list[str]:
    """Return the sentences that are not blank, stripped of white space."""
    if not isinstance(value, list):
        raise bad_field(where, field, "must be a list of sentences")
    sentences = (text(item, f"{field}[{i}]", where, may_be_blank=True).strip() for i, item in enumerate(value))
    return [sentence for sentence in sentences if sentence]


def _pairs(row: dict[str, Any], field: str, seconds: tuple[str, ...], where: str) -> Iterator[tuple[str, Any]]:
    """Yield title and value of each pair in a field: a list of pairs, or an object with two parallel lists.

    Args:
        row: The row.
        field: Field that contains the pairs.
        seconds: Possible names of the list that is parallel to `title`.
        where: Location of the row, for messages.
    """
    value = required(row, field, where)
    second = seconds[0]
    if isinstance(value, dict):
        second = next((name for name in seconds if has(value, name)), second)
        sides = [required(value, name, f"{where}: field {field}") for name in ("title", second)]
        if not all(isinstance(side, list) for side in sides) or len(sides[0]) != len(sides[1]):
            raise bad_field(where, field, f"title and {second} must be lists of the same length")
        value = list(zip(*sides, strict=True))
    if not isinstance(value, list):
        raise bad_field(where, field, f"must be a list of [title, {second}]")
    for index, pair in enumerate(value):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise bad_field(where, f"{field}[{index}]", f"must be [title, {second}]")
        yield text(pair[0], f"{field}[{index}][0]", where), pair[1]
