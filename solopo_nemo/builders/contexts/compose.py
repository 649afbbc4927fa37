"""Composition of contexts to token targets: by counts of single paragraphs, then exactly."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random

from solopo_nemo.builders.contexts.counting import TokenCounter
from solopo_nemo.builders.contexts.pool import ParagraphPool
from solopo_nemo.builders.contexts.prompt import passage_body, render_prompt
from solopo_nemo.builders.contexts.question import Paragraph, Question
from solopo_nemo.builders.contexts.targets import Target, Targets
from solopo_nemo.data.tokenize import TripletEncoder
from solopo_nemo.data.triplets import Message
from solopo_nemo.runtime.progress import with_progress

PATIENCE = 24
"""Candidates that may be too long one after the other before a context counts as full."""
_REPAIRS = 8
_COUNTED_AT_ONCE = 512


@dataclass(frozen=True)
class Context:
    """One prompt of a question.

    Attributes:
        prompt: Its messages.
        tokens: Its exact length as the chat template renders it, generation prompt included.
        target: The length it was filled to.
        distractors: The paragraphs in it beside the evidence, in the order they were drawn.
        evidence: Where the supporting passages stand, from 0 (first) to 1 (last), by characters.
    """

    prompt: list[Message]
    tokens: int
    target: int
    distractors: tuple[Paragraph, ...]
    evidence: tuple[float, ...]


@dataclass(frozen=True)
class Contexts:
    """The contexts of a question, each nested in the next.

    Attributes:
        short: The short one.
        long: The long ones by the label of their target.
    """

    short: Context
    long: dict[str, Context]


@dataclass(frozen=True)
class Dropped:
    """A question for which a rule allows no context."""

    rule: str
    reason: str


class Composer:
    """Builds the nested contexts of a question.

    The result for a question depends on the seed, the question, the pool and the targets, and on nothing else.

    Args:
        pool: Where distractors come from.
        encoder: Counts tokens of the target tokenizer.
        targets: Largest numbers of tokens of the prompts.
        seed: Another seed draws and orders differently.
    """

    def __init__(self, pool: ParagraphPool, encoder: TripletEncoder, *, targets: Targets, seed: int) -> None:
        self._pool = pool
        self._counter = TokenCounter(encoder)
        self._targets = targets
        self._seed = seed

    def count_pool(self) -> int:
        """Tokenize each paragraph of the pool once, on all cores; return their tokens as passages of one prompt."""
        paragraphs = with_progress(self._pool, "counting tokens", len(self._pool))
        bodies = 0
        while batch := list(islice(paragraphs, _COUNTED_AT_ONCE)):
            bodies += sum(self._counter.count_ahead(batch))
        return bodies + sum(self._counter.header(number) for number in range(1, len(self._pool) + 1))

    def compose(self, question: Question) -> Contexts | Dropped:
        """Return the contexts of a question, or the rule by which it has none.

        Each holds all supporting paragraphs, and distractors until no other one of many drawn fits: the prompt is
        within one paragraph of the target and never above it. The distractors of a shorter one are in the longer ones.
        """
        if not question.answerable:
            return Dropped("unanswerable", "the source says that the paragraphs do not hold the answer")
        filling = _Filling(self._counter, question, self._pool, self._seed)
        contexts: list[Context] = []
        for name, target in self._targets.named():
            context = filling.settle(name, target)
            if isinstance(context, Dropped):
                return context
            contexts.append(context)
        labels = [target.label for target in self._targets.long]
        return Contexts(contexts[0], dict(zip(labels, contexts[1:], strict=True)))


class _Filling:
    """A context that grows from one target to the next."""

    def __init__(self, counter: TokenCounter, question: Question, pool: ParagraphPool, seed: int) -> None:
        self._counter = counter
        self._question = question
        self._seed = f"{seed}:{question.id}"
        self._drawn = pool.draw(question, Random(self._seed))
        self._distractors: list[Paragraph] = []
        self._kept = 0  # distractors of the shorter context, which stay
        self._passed: deque[Paragraph] = deque()  # drawn, but too long for the place left
        self._tokens = self._exact(self._order("evidence"))

    def settle(self, name: str, target: Target) -> Context | Dropped:
        """Fill to the question's target by counts, compare with the exact count, and repair until both agree."""
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
            tuple(_positions(order, self._question.supporting)),
        )

    def _fill(self, limit: int) -> None:
        too_long: list[Paragraph] = []
        # a paragraph that was too long for the shorter context may go into the longer one
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
        """Tokens of a paragraph as the next passage."""
        return self._counter.passage(paragraph, len(self._question.supporting) + len(self._distractors) + 1)

    def _order(self, name: str) -> list[Paragraph]:
        paragraphs = [*self._question.supporting, *self._distractors]
        Random(f"{self._seed}:{name}").shuffle(paragraphs)
        return paragraphs

    def _exact(self, order: list[Paragraph]) -> int:
        return self._counter.prompt(render_prompt(self._question.question, order), f"question {self._question.id}")


def _positions(order: list[Paragraph], supporting: tuple[Paragraph, ...]) -> Iterator[float]:
    """Yield where supporting passages stand in the text of all: 0 the first, 1 the last."""
    keys = {paragraph.key for paragraph in supporting}
    lengths = [len(passage_body(paragraph)) for paragraph in order]
    total, start = sum(lengths), 0
    for paragraph, length in zip(order, lengths, strict=True):
        if paragraph.key in keys:
            yield start / (total - length) if total > length else 0.0
        start += length
