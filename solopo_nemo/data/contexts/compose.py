"""Composition of contexts to token targets: by counts of single paragraphs, then exactly."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from random import Random

from solopo_nemo.data.contexts.pool import ParagraphPool
from solopo_nemo.data.contexts.prompt import passage_body, passage_header, render_prompt
from solopo_nemo.data.contexts.question import Paragraph, Question
from solopo_nemo.data.tokenize import TripletEncoder
from solopo_nemo.data.triplets import Message

# candidates that may be too long one after the other before a context counts as full
_PATIENCE = 24
_REPAIRS = 8


@dataclass(frozen=True)
class Context:
    """One prompt of a question.

    Attributes:
        prompt: Its messages.
        tokens: Its exact length as the chat template renders it, generation prompt included.
        distractors: The paragraphs in it beside the evidence, in the order they were drawn.
    """

    prompt: list[Message]
    tokens: int
    distractors: tuple[Paragraph, ...]


@dataclass(frozen=True)
class Dropped:
    """A question for which a rule allows no context."""

    rule: str
    reason: str


class TokenCounter:
    """Token counts of prompts, exact, and of single passages, kept for the next question."""

    def __init__(self, encoder: TripletEncoder) -> None:
        self._encoder = encoder
        self._counts: dict[str, int] = {}

    def prompt(self, prompt: list[Message], where: str) -> int:
        """Return the exact length of a rendered prompt."""
        return len(self._encoder.encode_prompts([prompt], [where])[0])

    def passage(self, paragraph: Paragraph, number: int) -> int:
        """Return what a passage adds to a prompt, up to tokens that span its borders."""
        return self._count(passage_header(number), passage_header(number)) + self._count(
            paragraph.key, passage_body(paragraph)
        )

    def _count(self, key: str, text: str) -> int:
        count = self._counts.get(key)
        if count is None:
            count = self._counts[key] = self._encoder.count_text(text)
        return count


class Composer:
    """Builds the nested short and long context of a question.

    The result for a question depends on the seed, the question, the pool and the targets, and on nothing else.

    Args:
        pool: Where distractors come from.
        encoder: Counts tokens of the target tokenizer.
        short_tokens: Largest number of tokens of the short prompt.
        long_tokens: The same for the long one, larger.
        seed: Another seed draws and orders differently.
    """

    def __init__(
        self, pool: ParagraphPool, encoder: TripletEncoder, *, short_tokens: int, long_tokens: int, seed: int
    ) -> None:
        self._pool = pool
        self._counter = TokenCounter(encoder)
        self._targets = {"short": short_tokens, "long": long_tokens}
        self._seed = seed

    def compose(self, question: Question) -> dict[str, Context] | Dropped:
        """Return the contexts "short" and "long" of a question, or the rule by which it has none.

        Each holds all supporting paragraphs, and distractors until no other one of many drawn fits: the prompt is
        within one paragraph of the target and never above it. The short one's distractors are in the long one.
        """
        if not question.answerable:
            return Dropped("unanswerable", "the source says that the paragraphs do not hold the answer")
        filling = _Filling(self._counter, question, self._pool, self._seed)
        contexts: dict[str, Context] = {}
        for name, target in self._targets.items():
            contexts[name] = filling.settle(name, target)
            if filling.tokens > target:
                reason = (
                    f"with its evidence alone the {name} prompt has {filling.tokens} tokens, the target is {target}"
                )
                return Dropped("evidence_too_long", reason)
            if not filling.passed:
                reason = f"with every unrelated paragraph the {name} prompt has {filling.tokens} of {target} tokens"
                return Dropped("too_few_distractors", reason)
        return contexts


class _Filling:
    """A context that grows: first to the short target, then from there to the long one."""

    def __init__(self, counter: TokenCounter, question: Question, pool: ParagraphPool, seed: int) -> None:
        self._counter = counter
        self._question = question
        self._seed = f"{seed}:{question.id}"
        self._drawn = pool.draw(question, Random(self._seed))
        self._distractors: list[Paragraph] = []
        self._kept = 0  # distractors of the shorter context, which stay
        self.passed: deque[Paragraph] = deque()  # drawn, but too long for the place left
        self.tokens = self._exact("evidence")

    def settle(self, name: str, target: int) -> Context:
        """Fill to `target` by counts, compare with the exact count, and mend until both agree."""
        for _ in range(_REPAIRS):
            self._fill(target)
            counted, self.tokens = self.tokens, self._exact(name)
            if self.tokens == counted:
                break
            self._shrink(target)
        else:
            self.tokens = self._exact(name)
        while self.tokens > target and len(self._distractors) > self._kept:
            self._remove_last()
            self.tokens = self._exact(name)
        self._kept = len(self._distractors)
        return Context(self._render(name), self.tokens, tuple(self._distractors))

    def _fill(self, target: int) -> None:
        too_long: list[Paragraph] = []
        # a paragraph that was too long for the short context may go into the long one
        while paragraph := self.passed.popleft() if self.passed else next(self._drawn, None):
            cost = self._cost(paragraph)
            if self.tokens + cost <= target:
                self._distractors.append(paragraph)
                self.tokens += cost
            else:
                too_long.append(paragraph)
                if len(too_long) >= _PATIENCE:
                    break
        self.passed.extendleft(reversed(too_long))

    def _shrink(self, target: int) -> None:
        while self.tokens > target and len(self._distractors) > self._kept:
            self.tokens -= self._remove_last()

    def _remove_last(self) -> int:
        paragraph = self._distractors.pop()
        self.passed.append(paragraph)
        return self._cost(paragraph)

    def _cost(self, paragraph: Paragraph) -> int:
        """Tokens of a paragraph as the next passage."""
        return self._counter.passage(paragraph, len(self._question.supporting) + len(self._distractors) + 1)

    def _render(self, name: str) -> list[Message]:
        paragraphs = [*self._question.supporting, *self._distractors]
        Random(f"{self._seed}:{name}").shuffle(paragraphs)
        return render_prompt(self._question.question, paragraphs)

    def _exact(self, name: str) -> int:
        return self._counter.prompt(self._render(name), f"question {self._question.id}")
