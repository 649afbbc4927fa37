"""A table that renders to the terminal, to HTML and to Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import rich.table
from markupsafe import Markup


@dataclass(frozen=True)
class Table:
    """Rows of text with a header.

    Attributes:
        head: column headings.
        rows: rows with one cell per column.
        align: alignment of each column, ``l`` or ``r``. The last letter applies to all further columns.
        title: title above the table (terminal only).
        note: caption below the table (terminal only).
        wide: indices of the columns that a narrow HTML page hides.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    align: str = "lr"
    title: str | None = None
    note: str | None = None
    wide: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.rows)

    def terminal(self) -> rich.table.Table:
        """The table for ``rich.print``."""
        table = rich.table.Table(title=self.title, caption=self.note, title_justify="left", caption_justify="left")
        for heading, side in zip(self.head, self._sides(), strict=True):
            table.add_column(heading, justify="left" if side == "l" else "right")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """The table as Markdown, with a line feed at its end."""
        rule = "|".join("---" if side == "l" else "---:" for side in self._sides())
        head, *rows = (f"| {' | '.join(row)} |\n" for row in (self.head, *self.rows))
        return f"{head}|{rule}|\n{''.join(rows)}"

    def html(self) -> Markup:
        """The table as HTML. Cells that are not ``Markup`` are escaped."""
        rows = [self._row("th", self.head), *(self._row("td", row) for row in self.rows)]
        return Markup('<div class="scroll"><table>\n{}</table></div>').format(Markup().join(rows))

    def _row(self, tag: str, cells: Sequence[str]) -> Markup:
        wide = [Markup(' class="wide"' if column in self.wide else "") for column in range(len(cells))]
        filled = (Markup("<{0}{1}>{2}</{0}>").format(tag, mark, cell) for mark, cell in zip(wide, cells, strict=True))
        return Markup("<tr>{}</tr>\n").format(Markup().join(filled))

    def _sides(self) -> Iterator[str]:
        return (self.align[min(column, len(self.align) - 1)] for column in range(len(self.head)))
