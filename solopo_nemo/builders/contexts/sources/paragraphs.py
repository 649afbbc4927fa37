"""Readers for the paragraphs of MuSiQue and of pool files."""

from __future__ import annotations

from typing import Any

from solopo_nemo.builders.contexts.question import Paragraph
from solopo_nemo.data.fields import has, required, text


def is_paragraph(row: dict[str, Any]) -> bool:
    """True if a row is a paragraph and not a question."""
    return has(row, "paragraph_text") or (has(row, "text") and not has(row, "question"))


def pool_paragraph(row: dict[str, Any], where: str) -> Paragraph:
    """Read a row of a pool: MuSiQue's `title` and `paragraph_text`, or `text` and an optional `title`.

    Raises:
        UserError: A field is missing or invalid.
    """
    return plain_paragraph(row, where, "") if has(row, "text") else titled_paragraph(row, where, "")


def plain_paragraph(item: dict[str, Any], where: str, prefix: str) -> Paragraph:
    """Read `text` and an optional `title`. Arguments and errors are those of `titled_paragraph`."""
    title = text(item["title"], f"{prefix}title", where) if has(item, "title") else ""
    return Paragraph(title, text(required(item, "text", _place(where, prefix)), f"{prefix}text", where))


def titled_paragraph(item: dict[str, Any], where: str, prefix: str) -> Paragraph:
    """Read `title` and `paragraph_text`.

    Args:
        item: The object with the fields.
        where: Location of the row, for messages.
        prefix: Path of the object in the row with a trailing dot, such as `paragraphs[3].`; empty for the row itself.

    Raises:
        UserError: A field is missing or invalid.
    """
    place = _place(where, prefix)
    return Paragraph(
        title=text(required(item, "title", place), f"{prefix}title", where),
        text=text(required(item, "paragraph_text", place), f"{prefix}paragraph_text", where),
    )


def _place(where: str, prefix: str) -> str:
    return f"{where}: field {prefix[:-1]}" if prefix else where
