"""The nested contexts of a question: one for each token target, grown from the paragraphs of a pool."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from solopo_nemo.builders.contexts.counting import TokenCounter
from solopo_nemo.builders.contexts.question import Paragraph, Question
from solopo_nemo.builders.contexts.targets import Target, Targets
from solopo_nemo.data.messages import Message
from solopo_nemo.data.tokenize import TripletEncoder


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

    @classmethod
    def too_long(cls, name: str, tokens: int, limit: int) -> Dropped:
        """The evidence exceeds a target."""
        what = f"with its evidence alone the {name} prompt has {tokens} tokens, the target is {limit}"
        return cls("evidence_too_long", what)


class Growing(Protocol):
    """A context that grows from one target to the next."""

    def settle(self, name: str, target: Target) -> Context | Dropped:
        """Return the context for the next target, or the rule that excludes the question."""


class Pool(Protocol):
    """Paragraphs from which the distractors of contexts are taken."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Paragraph]: ...

    def begin(self, question: Question, counter: TokenCounter, seed: int) -> Growing | Dropped:
        """Begin the context of a question with its evidence, or return the rule that excludes it."""


class Composer:
    """Builds the nested contexts of a question.

    The result for a question depends only on the seed, the question, the pool, the targets and the tokenizer.

    Args:
        pool: Source of the distractors.
        encoder: Encoder of the target tokenizer.
        targets: Maximum prompt lengths in tokens.
        seed: Seed of the draws and of the order of paragraphs.
    """

    def __init__(self, pool: Pool, encoder: TripletEncoder, *, targets: Targets, seed: int) -> None:
        self._pool, self._targets, self._seed = pool, targets, seed
        self._counter = TokenCounter(encoder)

    def count_pool(self) -> int:
        """Count the tokens of each pool paragraph once, on all cores; return their sum as passages of one prompt."""
        return self._counter.count_all(self._pool, len(self._pool))

    def compose(self, question: Question) -> Contexts | Dropped:
        """Return the contexts of a question, or the rule that excludes it.

        Each context contains all supporting paragraphs, is within one paragraph of its target and never above it. A
        longer context contains the distractors of the shorter ones.
        """
        if not question.answerable:
            return Dropped("unanswerable", "the source says that the paragraphs do not hold the answer")
        growing = self._pool.begin(question, self._counter, self._seed)
        if isinstance(growing, Dropped):
            return growing
        contexts: list[Context] = []
        for name, target in self._targets.named():
            context = growing.settle(name, target)
            if isinstance(context, Dropped):
                return context
            contexts.append(context)
        labels = [target.label for target in self._targets.long]
        return Contexts(contexts[0], dict(zip(labels, contexts[1:], strict=True)))


def positions(lengths: Sequence[int], marked: Sequence[bool]) -> Iterator[float]:
    """Yield the positions of the marked passages by characters, from 0 (first) to 1 (last)."""
    total, start = sum(lengths), 0
    for length, is_marked in zip(lengths, marked, strict=True):
        if is_marked:
            yield start / (total - length) if total > length else 0.0
        start += length
