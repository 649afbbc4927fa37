"""Contexts in natural order: the document of the evidence, whole or a window, and other documents around it."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain, groupby
from random import Random

from solopo_nemo.builders.contexts.compose import Context, Dropped, positions
from solopo_nemo.builders.contexts.counting import TokenCounter
from solopo_nemo.builders.contexts.pool import permutation
from solopo_nemo.builders.contexts.prompt import render_prompt
from solopo_nemo.builders.contexts.question import Paragraph, Question
from solopo_nemo.builders.contexts.targets import Target
from solopo_nemo.data.normal_form import holds

Place = tuple[int, int]
"""Number of a document, and of a passage in it."""


class DocumentPool:
    """The passages of documents, in order.

    A context grows from the evidence to its neighbours on both sides, until the document is whole, then by other
    documents from their beginning, each before or after it. How much faster it grows on one side is drawn for each
    question, so the evidence stands anywhere in a window. Passages that follow each other are one text with their
    document's title.

    Attributes:
        documents: The passages of each document.
        allow_answer_leak: Also take passages of other documents that contain the answer.
    """

    def __init__(self, passages: Iterable[tuple[str, Paragraph]], *, allow_answer_leak: bool) -> None:
        """Collect the passages.

        Args:
            passages: The name of its document and each passage, in the order of the documents.
            allow_answer_leak: See the class.
        """
        self.allow_answer_leak = allow_answer_leak
        documents: dict[str, list[Paragraph]] = {}
        for name, paragraph in passages:
            documents.setdefault(name, []).append(paragraph)
        self.documents = [*documents.values()]
        self._places: dict[str, Place] = {}
        for number, parts in enumerate(self.documents):
            for index, paragraph in enumerate(parts):
                self._places.setdefault(paragraph.key, (number, index))

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Paragraph]:
        return chain.from_iterable(self.documents)

    def begin(self, question: Question, counter: TokenCounter, seed: int) -> _Window | Dropped:
        """See `Pool`."""
        evidence: set[Place] = set()
        for paragraph in question.supporting:
            if paragraph.key not in self._places:
                return Dropped("not_in_documents", f"the evidence {paragraph.name!r} is no passage of the --pool")
            evidence.add(self._places[paragraph.key])
        return _Window(counter, self, question, evidence, seed)


class _Window:
    """A context that grows from one target to the next."""

    def __init__(
        self, counter: TokenCounter, pool: DocumentPool, question: Question, evidence: set[Place], seed: int
    ) -> None:
        self._counter, self._pool, self._question, self._evidence = counter, pool, question, evidence
        self._seed = f"{seed}:{question.id}"
        random = Random(self._seed)
        self._own = sorted({number for number, _ in evidence})
        self._sequence = deque(self._own)  # documents in the order of the prompt
        self._growth = chain(self._neighbours(random.uniform(0.1, 0.9)), self._others(random))
        self._taken: list[Place] = []
        self._sums: list[int] = []  # estimated tokens of the first taken passages together
        self._base = self._exact(0)

    def settle(self, name: str, target: Target) -> Context | Dropped:
        """Take as many passages as fit: by estimated counts, corrected by an exact one, then one by one."""
        limit = target.draw(Random(f"{self._seed}:{name}:target"))
        if self._base > limit:
            return Dropped.too_long(name, self._base, limit)
        scale = 1.0  # exact by estimated count
        for _ in range(2):
            while self._base + scale * (self._sums or [0])[-1] <= limit and self._grow():
                pass
            count = bisect_right(self._sums, (limit - self._base) / scale)
            tokens = self._exact(count)
            scale = (tokens - self._base) / self._sums[count - 1] if count else scale
        while tokens <= limit:
            if count == len(self._taken) and not self._grow():
                what = f"with every other passage the {name} prompt has {tokens} of {limit} tokens"
                return Dropped("too_few_distractors", what)
            if (more := self._exact(count + 1)) > limit:
                break
            count, tokens = count + 1, more
        while tokens > limit:
            count -= 1
            tokens = self._exact(count)
        places = [place for number in self._sequence for place in self._places(number, count)]
        lengths = [len(self._paragraph(place).text) for place in places]
        return Context(
            render_prompt(self._question.question, [*self._order(count)]),
            tokens,
            limit,
            tuple(map(self._paragraph, self._taken[:count])),
            tuple(positions(lengths, [place in self._evidence for place in places])),
        )

    def _grow(self) -> bool:
        place = next(self._growth, None)
        if place is None:
            return False
        self._taken.append(place)
        self._sums.append((self._sums or [0])[-1] + self._counter.body(self._paragraph(place)))
        return True

    def _neighbours(self, lean: float) -> Iterator[Place]:
        """Yield the other passages of the documents with evidence, the nearest first; `lean` is the pace upwards."""
        found = []
        for number in self._own:
            marked = [index for other, index in self._evidence if other == number]
            for index in range(len(self._pool.documents[number])):
                if index not in marked:
                    away = min((at - index) / lean if index < at else (index - at) / (1 - lean) for at in marked)
                    found.append((away, number, index))
        return ((number, index) for _, number, index in sorted(found))

    def _others(self, random: Random) -> Iterator[Place]:
        for number in permutation(len(self._pool.documents), random):
            if number in self._own:
                continue
            self._sequence.insert(random.choice((0, len(self._sequence))), number)
            for index, paragraph in enumerate(self._pool.documents[number]):
                if self._pool.allow_answer_leak or not holds(paragraph.normal, self._question.normal_answers):
                    yield number, index

    def _paragraph(self, place: Place) -> Paragraph:
        return self._pool.documents[place[0]][place[1]]

    def _places(self, number: int, count: int) -> list[Place]:
        return sorted(place for place in (*self._evidence, *self._taken[:count]) if place[0] == number)

    def _order(self, count: int) -> Iterator[Paragraph]:
        """Yield the texts of the prompt: passages that follow each other are one."""
        for number in self._sequence:
            for _, run in groupby(enumerate(self._places(number, count)), key=lambda pair: pair[1][1] - pair[0]):
                parts = [self._paragraph(place) for _, place in run]
                yield Paragraph(parts[0].title, "".join(part.text for part in parts))

    def _exact(self, count: int) -> int:
        prompt = render_prompt(self._question.question, [*self._order(count)])
        return self._counter.prompt(prompt, f"question {self._question.id}")
