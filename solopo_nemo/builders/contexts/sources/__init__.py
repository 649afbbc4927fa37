"""Question answering sources: one reader per schema. All readers yield questions and bad rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any

from solopo_nemo.builders.contexts.question import BadRow, Paragraph, Question
from solopo_nemo.builders.contexts.sources import generic, hotpot, musique, squad
from solopo_nemo.builders.contexts.sources.paragraphs import is_paragraph, pool_paragraph
from solopo_nemo.builders.contexts.sources.source import RowSource
from solopo_nemo.data.fields import bad_field, has, note_id, required_text
from solopo_nemo.data.json_rows import Row
from solopo_nemo.runtime.errors import UserError

Parse = Callable[[dict[str, Any], str], Question]

_PARSERS: Mapping[str, Parse] = {
    "musique": musique.parse,
    "hotpot": hotpot.parse,
    "2wiki": hotpot.parse,
    "squad": squad.parse,
    "generic": generic.parse,
}
FORMATS = tuple(_PARSERS)
"""Values of `--format`."""


def read_questions(source: RowSource, schema: str | None = None) -> Iterator[Question | BadRow]:
    """Yield the questions and bad rows of a source in order.

    A row is bad if it cannot be read, a field is missing or invalid, no supporting paragraph contains the answer, or
    its id is a duplicate.

    Args:
        source: JSON lines, a JSON array or SQuAD's JSON (each also `.gz`), parquet, or a dataset.
        schema: One of `FORMATS`; None detects it from the fields of the first readable row.

    Raises:
        UserError: The file type or the schema is unknown.
    """
    rows = _flat_rows(source)
    schema, rows = (schema, rows) if schema else _recognise(rows)
    yield from _questions(rows, schema)


def read_pool(source: RowSource) -> Iterator[Paragraph]:
    """Yield all paragraphs of a pool. Its rows are paragraphs, or questions of any schema with their paragraphs.

    Raises:
        UserError: A row is bad, or the file type or the schema is unknown.
    """
    rows = _flat_rows(source)
    head = next(rows, None)
    if head is None:
        return
    rows = chain([head], rows)
    if head.value is None or is_paragraph(head.value):
        for row in rows:
            yield pool_paragraph(row.fields(), row.where)
        return
    schema = _schema(head.value, head.where, "a pool has rows of title and paragraph_text, or questions")
    for question in _questions(rows, schema):
        if isinstance(question, BadRow):
            raise UserError(question.error)
        yield from (*question.supporting, *question.others)


def read_passages(source: RowSource) -> Iterator[tuple[str, Paragraph]]:
    """Yield the name of its document and each passage, in order.

    Raises:
        UserError: A row is bad, or the file type is unknown.
    """
    last: dict[str, int] = {}
    for row in source.rows():
        fields = row.fields()
        if not has(fields, "document"):
            what = "missing: --long document takes the passages that build_questions writes"
            raise bad_field(row.where, "document", what)
        name, number = required_text(fields, "document", row.where), fields.get("number")
        if isinstance(number, int):
            if number <= last.get(name, -1):
                what = f"{number} is not above the one before it in {name!r}"
                raise bad_field(row.where, "number", f"{what}: give the passages as build_questions wrote them")
            last[name] = number
        yield name, pool_paragraph(fields, row.where)


def _flat_rows(source: RowSource) -> Iterator[Row]:
    return (flat for row in source.rows() for flat in squad.flatten(row))


def _questions(rows: Iterator[Row], schema: str) -> Iterator[Question | BadRow]:
    parse = _PARSERS[schema]
    seen: set[str] = set()
    for row in rows:
        try:
            question = parse(row.fields(), row.where)
            note_id(question.id, seen, row.where)
        except UserError as error:
            yield BadRow(str(error), row.value)
        else:
            yield question


def _recognise(rows: Iterator[Row]) -> tuple[str, Iterator[Row]]:
    """Return the schema of the first readable row, and an iterator over all rows."""
    head: list[Row] = []
    for row in rows:
        head.append(row)
        if row.value is not None:
            hint = f"give --format, one of {', '.join(FORMATS)}"
            return _schema(row.value, row.where, hint), chain(head, rows)
    return "musique", iter(head)  # no row is readable, which every reader reports


def _schema(row: dict[str, Any], where: str, hint: str) -> str:
    for name, fields in (
        ("generic", ("supporting",)),
        ("hotpot", ("supporting_facts", "context")),
        ("squad", ("context", "answers")),
        ("musique", ("paragraphs",)),
    ):
        if all(field in row for field in fields):
            return name
    names = ", ".join(map(str, row)) or "none"
    raise UserError(f"{where}: schema not recognised by this row's fields ({names}): {hint}")
