"""The common types of questions and paragraphs, for all sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from solopo_nemo.data.normal_form import normal_of, searchable
from solopo_nemo.runtime.errors import UserError

_NAME_WORDS = 6


@dataclass(frozen=True)
class Paragraph:
    """A paragraph. Its title may be empty."""

    title: str
    text: str

    @property
    def name(self) -> str:
        """The title, or the first words of a paragraph without a title."""
        return self.title or " ".join(self.text.split()[:_NAME_WORDS]) + " ..."

    @cached_property
    def normal(self) -> str:
        """Title and text in the form in which :func:`~solopo_nemo.data.normal_form.holds` searches answers."""
        return f"{searchable(self.title)} {self._form}"

    @cached_property
    def key(self) -> str:
        """The text in normal form. Paragraphs with the same key are duplicates."""
        return normal_of(self._form)

    @cached_property
    def _form(self) -> str:
        return searchable(self.text)


@dataclass(frozen=True)
class Question:
    """A question with its evidence.

    Attributes:
        id: Unique in its source.
        question: Text of the question.
        answers: The gold answer, followed by its aliases.
        supporting: Paragraphs with the evidence, in the order of the source.
        others: Distractors of the source.
        answerable: False if the source marks the question as unanswerable.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    supporting: tuple[Paragraph, ...]
    others: tuple[Paragraph, ...]
    answerable: bool = True

    @cached_property
    def normal_answers(self) -> tuple[str, ...]:
        """The answers in the form in which they are searched, without repetition."""
        return tuple(dict.fromkeys(searchable(answer) for answer in self.answers))


@dataclass(frozen=True)
class BadRow:
    """An unusable row of the source.

    Attributes:
        error: One line with file, line, field and correction.
        value: The row; None if it is not valid JSON.
    """

    error: str
    value: dict[str, Any] | None


def refuse_bad_rows(errors: Sequence[str], skip_bad: bool) -> None:
    """Raise a `UserError` with the first error, if there is one and `skip_bad` is false."""
    if errors and not skip_bad:
        more = f" (and {len(errors) - 1} more bad rows)" if len(errors) > 1 else ""
        raise UserError(f"{errors[0]}{more}; --skip-bad goes on without and lists them")
