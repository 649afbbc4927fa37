"""Contexts of shuffled passages, filled to a target with paragraphs that are drawn from a pool."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from random import Random

from solopo_nemo.builders.contexts.compose import Context, Dropped, positions
from solopo_nemo.builders.contexts.counting import TokenCounter
from solopo_nemo.builders.contexts.prompt import passage_body, render_prompt
from solopo_nemo.builders.contexts.question import Paragraph, Question
from solopo_nemo.builders.contexts.targets import Target
from solopo_nemo.data.normal_form import holds

PATIENCE = 24
"""A context is full after this many candidates that do not fit."""
_REPAIRS = 8


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

    def begin(self, question: Question, counter: TokenCounter, seed: int) -> _Filling:
        """See `Pool`.

        Distractors are added until :data:`PATIENCE` candidates do not fit. The prompt is thus within one paragraph of
        its target.
        """
        return _Filling(counter, question, self, seed)

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


class _Filling:
    """A context that grows by estimates from the counts of single paragraphs, corrected by exact counts."""

    def __init__(self, counter: TokenCounter, question: Question, pool: ParagraphPool, seed: int) -> None:
        self._counter = counter
        self._question = question
        self._seed = f"{seed}:{question.id}"
        self._drawn = pool.draw(question, Random(self._seed))
        self._distractors: list[Paragraph] = []
        self._kept = 0  # distractors of the shorter context, which cannot be removed
        self._passed: deque[Paragraph] = deque()  # drawn, but too long for the remaining tokens
        self._tokens = self._exact(self._order("evidence"))

    def settle(self, name: str, target: Target) -> Context | Dropped:
        """Fill the context by estimated counts, then correct it until the estimate equals the exact count."""
        limit = target.draw(Random(f"{self._seed}:{name}:target"))
        measured: list[Paragraph] | None = None
        for _ in range(_REPAIRS):
            self._fill(limit)
            if self._distractors == measured:
                break
            counted, self._tokens = self._tokens, self._exact(self._order(name))
            measured = list(self._distractors)
            if self._tokens == counted:
                break
            while self._tokens > limit and len(self._distractors) > self._kept:
                self._tokens -= self._remove_last()
        else:
            self._tokens = self._exact(self._order(name))
        while self._tokens > limit and len(self._distractors) > self._kept:
            self._remove_last()
            self._tokens = self._exact(self._order(name))
        if self._tokens > limit:
            return Dropped.too_long(name, self._tokens, limit)
        if not self._passed:
            what = f"with every unrelated paragraph the {name} prompt has {self._tokens} of {limit} tokens"
            return Dropped("too_few_distractors", what)
        self._kept = len(self._distractors)
        order = self._order(name)
        return Context(
            render_prompt(self._question.question, order),
            self._tokens,
            limit,
            tuple(self._distractors),
            tuple(self._positions(order)),
        )

    def _fill(self, limit: int) -> None:
        too_long: list[Paragraph] = []
        # a paragraph that did not fit into the shorter context may fit into the longer one
        while paragraph := self._passed.popleft() if self._passed else next(self._drawn, None):
            cost = self._cost(paragraph)
            if self._tokens + cost <= limit:
                self._distractors.append(paragraph)
                self._tokens += cost
            else:
                too_long.append(paragraph)
                if len(too_long) >= PATIENCE:
                    break
        self._passed.extendleft(reversed(too_long))

    def _remove_last(self) -> int:
        paragraph = self._distractors.pop()
        self._passed.append(paragraph)
        return self._cost(paragraph)

    def _cost(self, paragraph: Paragraph) -> int:
        """Tokens that a paragraph adds as the next passage."""
        return self._counter.passage(paragraph, len(self._question.supporting) + len(self._distractors) + 1)

    def _order(self, name: str) -> list[Paragraph]:
        paragraphs = [*self._question.supporting, *self._distractors]
        Random(f"{self._seed}:{name}").shuffle(paragraphs)
        return paragraphs

    def _exact(self, order: list[Paragraph]) -> int:
        return self._counter.prompt(render_prompt(self._question.question, order), f"question {self._question.id}")

    def _positions(self, order: list[Paragraph]) -> Iterator[float]:
        keys = {paragraph.key for paragraph in self._question.supporting}
        lengths = [len(passage_body(paragraph)) for paragraph in order]
        return positions(lengths, [paragraph.key in keys for paragraph in order])
