"""Paragraphs with a title, as MuSiQue and the pool files have them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from solopo_nemo.data.contexts.question import Paragraph
from solopo_nemo.data.fields import required, text
from solopo_nemo.data.rows import read_rows


def read_pool(path: Path) -> Iterator[Paragraph]:
    """Yield the paragraphs of a pool file, rows of `title` and `paragraph_text`.

    Raises:
        UserError: The first row that is not one, or the file cannot be read.
    """
    for row in read_rows(path):
        yield titled_paragraph(row.fields(), row.where, "")


def titled_paragraph(item: dict[str, Any], where: str, prefix: str) -> Paragraph:
    """Read `title` and `paragraph_text`.

    Args:
        item: The object that holds them.
        where: The row's place.
        prefix: The object's place in the row with a dot behind; empty for the row itself.

    Raises:
        UserError: One of them is missing or wrong.
    """
    place = f"{where}: field {prefix[:-1]}" if prefix else where
    return Paragraph(
        title=text(required(item, "title", place), f"{prefix}title", where),
        text=text(required(item, "paragraph_text", place), f"{prefix}paragraph_text", where),
    )
