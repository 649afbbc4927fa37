"""Composition of contexts to token targets: estimate from the counts of single paragraphs, then count exactly."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from solopo_nemo.builders.contexts.counting import TokenCounter
from solopo_nemo.builders.contexts.pool import ParagraphPool
from solopo_nemo.builders.contexts.prompt import passage_body, render_prompt
from solopo_nemo.builders.contexts.question import Paragraph, Question
from solopo_nemo.builders.contexts.targets import Target, Targets
from solopo_nemo.data.messages import Message
from solopo_nemo.data.tokenize import TripletEncoder

PATIENCE = 24
"""A context is full after this many candidates that do not fit."""
_REPAIRS = 8


@dataclass(frozen=True)
class Context:
    """One prompt of a question.

    Attributes:
        prompt: Chat messages.
        tokens: Exact length in tokens after the chat template, generation prompt included.
        target: Target length in tokens.
        distractors: Paragraphs other than the evidence, in the order in which they were drawn.
        evidence: Positions of the supporting passages by characters, from 0 (first) to 1 (last).
    """

    prompt: list[Message]
    tokens: int
    target: int
    distractors: tuple[Paragraph, ...]
    evidence: tuple[float, ...]


@dataclass(frozen=True)
class Contexts:
    """The contexts of a question. Each contains the paragraphs of the next shorter one.

    Attributes:
        short: The short context.
        long: Label of the target -> long context.
    """

    short: Context
    long: dict[str, Context]


@dataclass(frozen=True)
class Dropped:
    """A question without contexts, with the rule that excluded it and the reason in words."""

    rule: str
    reason: str


class Composer:
    """Builds the nested contexts of a question.

    The result for a question depends only on the seed, the question, the pool, the targets and the tokenizer.

    Args:
        pool: Source of the distractors.
        encoder: Encoder of the target tokenizer.
        targets: Maximum prompt lengths in tokens.
        seed: Seed of the draws and of the order of paragraphs.
    """

    def __init__(self, pool: ParagraphPool, encoder: TripletEncoder, *, targets: Targets, seed: int) -> None:
        self._pool = pool
        self._counter = TokenCounter(encoder)
        self._targets = targets
        self._seed = seed

    def count_pool(self) -> int:
        """Count the tokens of each pool paragraph once, on all cores; return their sum as passages of one prompt."""
        return self._counter.count_all(self._pool, len(self._pool))

    def compose(self, question: Question) -> Contexts | Dropped:
        """Return the contexts of a question, or the rule that excludes it.

        Each context contains all supporting paragraphs. Distractors are added until :data:`PATIENCE` candidates do not
        fit. The prompt is thus within one paragraph of its target and never above it. A longer context contains the
        distractors of the shorter ones.
        """
        if not question.answerable:
            return Dropped("unanswerable", "the source says that the paragraphs do not hold the answer")
        filling = _Filling(self._counter, question, self._pool, self._seed)
        return settle_all(self._targets, filling.settle)


def settle_all(targets: Targets, settle: Callable[[str, Target], Context | Dropped]) -> Contexts | Dropped:
    """Return a context for each target, shortest first, or the rule of the first that excludes the question."""
    contexts: list[Context] = []
    for name, target in targets.named():
        context = settle(name, target)
        if isinstance(context, Dropped):
            return context
        contexts.append(context)
    labels = [target.label for target in targets.long]
    return Contexts(contexts[0], dict(zip(labels, contexts[1:], strict=True)))


class _Filling:
    """A context that grows from one target to the next."""

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
            self._shrink(limit)
        else:
            self._tokens = self._exact(self._order(name))
        while self._tokens > limit and len(self._distractors) > self._kept:
            self._remove_last()
            self._tokens = self._exact(self._order(name))
        if self._tokens > limit:
            what = f"with its evidence alone the {name} prompt has {self._tokens} tokens, the target is {limit}"
            return Dropped("evidence_too_long", what)
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

    def _shrink(self, limit: int) -> None:
        while self._tokens > limit and len(self._distractors) > self._kept:
            self._tokens -= self._remove_last()

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


def positions(lengths: Sequence[int], marked: Sequence[bool]) -> Iterator[float]:
    """Yield the positions of the marked passages by characters, from 0 (first) to 1 (last)."""
    total, start = sum(lengths), 0
    for length, is_marked in zip(lengths, marked, strict=True):
        if is_marked:
            yield start / (total - length) if total > length else 0.0
        start += length
