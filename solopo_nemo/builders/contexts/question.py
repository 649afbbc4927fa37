"""The types that every source of questions is read into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from solopo_nemo.data.answers import normalize
from solopo_nemo.runtime.errors import UserError

_NAME_WORDS = 6


@dataclass(frozen=True)
class Paragraph:
    """A paragraph, with its title or an empty one."""

    title: str
    text: str

    @property
    def name(self) -> str:
        """The title, or the opening words of a paragraph without one."""
        return self.title or " ".join(self.text.split()[:_NAME_WORDS]) + " ..."

    @cached_property
    def normal(self) -> str:
        """Title and text in normal form, to look for answers in."""
        return f"{normalize(self.title)} {self.key}"

    @cached_property
    def key(self) -> str:
        """The text in normal form: paragraphs with the same key are duplicates."""
        return normalize(self.text)


@dataclass(frozen=True)
class Question:
    """A question with its evidence.

    Attributes:
        id: Unique in its source.
        question: The question's text.
        answers: The gold answer, then its aliases.
        supporting: The paragraphs that hold the evidence, in the source's order.
        others: The source's own distractors.
        answerable: False where the source says that the paragraphs do not hold the answer.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    supporting: tuple[Paragraph, ...]
    others: tuple[Paragraph, ...]
    answerable: bool = True

    @cached_property
    def normal_answers(self) -> tuple[str, ...]:
        """The answers in normal form, without repetition."""
        return tuple(dict.fromkeys(normalize(answer) for answer in self.answers))


@dataclass(frozen=True)
class BadRow:
    """A row of the source that cannot be used.

    Attributes:
        error: One line with file, line, field and how to mend it.
        value: The row, None where it is not even JSON.
    """

    error: str
    value: dict[str, Any] | None


def refuse_bad_rows(errors: Sequence[str], skip_bad: bool) -> None:
    """Raise a `UserError` with the first of the errors, unless there are none or bad rows are skipped."""
    if errors and not skip_bad:
        more = f" (and {len(errors) - 1} more bad rows)" if len(errors) > 1 else ""
        raise UserError(f"{errors[0]}{more}; --skip-bad goes on without and lists them")
