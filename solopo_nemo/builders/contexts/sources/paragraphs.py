"""Paragraphs with a title, as MuSiQue and the pool files have them."""

from __future__ import annotations

from typing import Any

from solopo_nemo.builders.contexts.question import Paragraph
from solopo_nemo.data.fields import has, required, text


def is_paragraph(row: dict[str, Any]) -> bool:
    """Tell whether a row is a paragraph by itself, and no question."""
    return has(row, "paragraph_text") or (has(row, "text") and not has(row, "question"))


def pool_paragraph(row: dict[str, Any], where: str) -> Paragraph:
    """Read a row of a pool: `title` and `paragraph_text` as MuSiQue has them, or `text` and perhaps a `title`.

    Raises:
        UserError: A field is missing or wrong.
    """
    return plain_paragraph(row, where, "") if has(row, "text") else titled_paragraph(row, where, "")


def plain_paragraph(item: dict[str, Any], where: str, prefix: str) -> Paragraph:
    """Read `text` and perhaps a `title`; see `titled_paragraph`."""
    title = text(item["title"], f"{prefix}title", where) if has(item, "title") else ""
    return Paragraph(title, text(required(item, "text", _place(where, prefix)), f"{prefix}text", where))


def titled_paragraph(item: dict[str, Any], where: str, prefix: str) -> Paragraph:
    """Read `title` and `paragraph_text`.

    Args:
        item: The object that holds them.
        where: The row's place.
        prefix: The object's place in the row with a dot behind; empty for the row itself.

    Raises:
        UserError: One of them is missing or wrong.
    """
    place = _place(where, prefix)
    return Paragraph(
        title=text(required(item, "title", place), f"{prefix}title", where),
        text=text(required(item, "paragraph_text", place), f"{prefix}paragraph_text", where),
    )


def _place(where: str, prefix: str) -> str:
    return f"{where}: field {prefix[:-1]}" if prefix else where
