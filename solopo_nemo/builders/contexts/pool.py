"""The pool of paragraphs from which distractors are drawn."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from solopo_nemo.builders.contexts.question import Paragraph, Question
from solopo_nemo.data.normal_form import holds


class ParagraphPool:
    """Paragraphs without duplicates. Draws do not depend on the order in which paragraphs were added.

    Args:
        allow_answer_leak: Also draw paragraphs that contain the question's answer or an alias.
    """

    def __init__(self, *, allow_answer_leak: bool = False) -> None:
        self._allow_answer_leak = allow_answer_leak
        # key -> the paragraph and the only question that owns it (None: no question or several)
        self._entries: dict[str, tuple[Paragraph, str | None]] = {}
        self._sorted: list[tuple[Paragraph, str | None]] | None = None
        # text -> key, a cache: sources repeat paragraphs, and normalization is slow
        self._keys: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Paragraph]:
        return (paragraph for paragraph, _ in self._entries.values())

    def add(self, paragraph: Paragraph, question_id: str | None = None) -> None:
        """Add a paragraph; duplicates are merged. :meth:`draw` does not yield it for the only question that owns it."""
        key = self._keys.get(paragraph.text)
        if key is None:
            key = self._keys[paragraph.text] = paragraph.key
        known, owner = self._entries.setdefault(key, (paragraph, question_id))
        # duplicates can differ in case or punctuation: keep the smallest, which does not depend on the order
        kept = min(known, paragraph, key=lambda candidate: (candidate.title, candidate.text))
        self._entries[key] = (kept, owner if owner == question_id else None)
        self._sorted = None

    def draw(self, question: Question, random: Random) -> Iterator[Paragraph]:
        """Yield distractors for a question in random order, each at most once.

        Excluded are the question's own paragraphs (its distractors are related text), duplicates of its evidence and,
        without `allow_answer_leak`, paragraphs that contain its answer.
        """
        if self._sorted is None:
            self._sorted = [self._entries[key] for key in sorted(self._entries)]
        support = {paragraph.key for paragraph in question.supporting}
        for index in permutation(len(self._sorted), random):
            paragraph, owner = self._sorted[index]
            if owner == question.id or paragraph.key in support:
                continue
            if self._allow_answer_leak or not holds(paragraph.normal, question.normal_answers):
                yield paragraph


def permutation(size: int, random: Random) -> Iterator[int]:
    """Yield 0..size-1 in random order. Time and memory are proportional to the values taken, not to `size`."""
    moved: dict[int, int] = {}
    for index in range(size):
        other = random.randrange(index, size)
        yield moved.get(other, other)
        moved[other] = moved.get(index, index)
