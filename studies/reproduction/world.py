"""The synthetic data: contexts of facts and fillers, and questions about a fact.

A sentence has four words. It is a fact such as `k012 a045 b101 .` (a key and its two values) or a filler such as
`f01 f33 f20 .`; sentences are in random order. The question `? k012` asks for a fact, and the answer `k012 a045 b101`
repeats it. A context of length 1x has 16 sentences, half of them facts. Contexts are drawn as token ids
`[contexts, sentences, 4]`. Ids are indices into :data:`VOCABULARY`, which is also the vocabulary of the tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from studies.tiny import IGNORE

PAD, UNKNOWN, START, ASK, ANSWER, END, STOP = "<pad>", "<unk>", "<start>", "?", "<answer>", "<end>", "."
SPECIALS = (PAD, UNKNOWN, START, ANSWER, END)
WORDS_A_SENTENCE = 4
KEYS, VALUES, FILLERS = 256, 128, 64
VOCABULARY: tuple[str, ...] = (
    *SPECIALS,
    ASK,
    STOP,
    *(f"k{n:03}" for n in range(KEYS)),
    *(f"a{n:03}" for n in range(VALUES)),
    *(f"b{n:03}" for n in range(VALUES)),
    *(f"f{n:03}" for n in range(FILLERS)),
)
"""All names have the same number of digits, so that no name contains another (sub-EM searches for substrings)."""
IDS = {word: number for number, word in enumerate(VOCABULARY)}
SHORT_SENTENCES = 16
FACTS_SHARE = 0.5
LONG = 8
"""Length of the long contexts in training, as a multiple of the short ones."""
RESPONSE_TOKENS = 4
"""Tokens of a right answer: key, two values, end token."""


@dataclass(frozen=True)
class Contexts:
    """Contexts as token ids.

    Attributes:
        sentences: int64 ``[contexts, sentences, 4]``, in reading order.
        facts: int64 ``[contexts, facts, 4]``, in random order. The question asks for the first one.
    """

    sentences: torch.Tensor
    facts: torch.Tensor

    @property
    def asked_at(self) -> torch.Tensor:
        """Index of the first fact among the sentences, int64 ``[contexts]``."""
        return (self.sentences[..., 0] == self.facts[:, :1, 0]).int().argmax(1)

    def cut(self, sentences: int, generator: torch.Generator) -> Contexts:
        """Shorter contexts with the first facts and random fillers of these contexts, in the same order.

        Args:
            sentences: sentences of each shorter context, half of them facts.
            generator: generator that selects the fillers.
        """
        kept = self.facts[:, : facts_of(sentences)]
        here = self.sentences[..., 0]
        is_kept = (here[:, :, None] == kept[:, None, :, 0]).any(-1)
        is_fact = (here >= IDS["k000"]) & (here < IDS["a000"])
        rank = torch.where(is_kept, 0.0, torch.where(is_fact, 2.0, 1.0))
        rank = rank + 0.5 * torch.rand(rank.shape, generator=generator)
        places = rank.argsort(1)[:, :sentences].sort(1)[0]
        return Contexts(self.sentences.gather(1, places[..., None].expand(-1, -1, WORDS_A_SENTENCE)), kept)

    def prompts(self) -> list[list[dict[str, str]]]:
        """The questions about the first facts, as chat messages."""
        return [
            [{"role": "user", "content": f"{words(sentences.flatten())} {ASK} {VOCABULARY[int(fact[0, 0])]}"}]
            for sentences, fact in zip(self.sentences, self.facts, strict=True)
        ]

    def answers(self) -> list[str]:
        """The right answers to :meth:`prompts`."""
        return [words(fact[0, :3]) for fact in self.facts]


def facts_of(sentences: int) -> int:
    """Number of facts in a context with a number of sentences."""
    return round(sentences * FACTS_SHARE)


def draw_contexts(count: int, sentences: int, generator: torch.Generator, facts: int | None = None) -> Contexts:
    """Draw contexts with distinct keys. By default, half of the sentences are facts."""
    facts = facts_of(sentences) if facts is None else facts
    keys = torch.rand(count, KEYS, generator=generator).argsort(1)[:, :facts, None] + IDS["k000"]
    values = torch.randint(VALUES, (count, facts, 2), generator=generator) + torch.tensor([IDS["a000"], IDS["b000"]])
    fillers = torch.randint(FILLERS, (count, sentences - facts, 3), generator=generator) + IDS["f000"]
    drawn = torch.cat([torch.cat([keys, values], -1), fillers], 1)
    drawn = torch.cat([drawn, torch.full((count, sentences, 1), IDS[STOP])], -1)
    order = torch.rand(count, sentences, generator=generator).argsort(1)[..., None].expand(-1, -1, WORDS_A_SENTENCE)
    return Contexts(drawn.gather(1, order), drawn[:, :facts])


def prompt_tokens(length: int) -> int:
    """Tokens of a prompt: start token, ``length * SHORT_SENTENCES`` sentences, and three tokens of the question."""
    return 1 + length * SHORT_SENTENCES * WORDS_A_SENTENCE + 3


def words(ids: torch.Tensor) -> str:
    """Token ids as text."""
    return " ".join(VOCABULARY[number] for number in ids.tolist())


def training_questions(count: int, seed: int, short: int, long: int) -> Iterator[dict[str, Any]]:
    """Generate rows for `tools/sample_pairs.py`. The short context is a part of the long one.

    Args:
        count: number of rows.
        seed: seed of the contexts.
        short: sentences of the short context.
        long: sentences of the long context.
    """
    generator = torch.Generator().manual_seed(seed)
    contexts = draw_contexts(count, long, generator)
    shorter = contexts.cut(short, generator)
    rows = zip(shorter.prompts(), contexts.prompts(), contexts.answers(), strict=True)
    for number, (prompt_short, prompt_long, answer) in enumerate(rows):
        yield {
            "id": f"{seed}-{number}",
            "prompt_short": prompt_short,
            "prompt_long": prompt_long,
            "answers": [answer],
        }


def dialogues(
    count: int, sentences: int, generator: torch.Generator, facts: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generate contexts followed by a question and answer about every fact, for pre-training.

    Returns:
        Token ids and labels (-100 outside the answers), int64 ``[count, tokens]``.
    """
    contexts = draw_contexts(count, sentences, generator, facts)
    known = contexts.facts

    def column(word: str) -> torch.Tensor:
        return torch.full((*known.shape[:2], 1), IDS[word])

    turns = torch.cat([column(ASK), known[..., :1], column(ANSWER), known[..., :3], column(END)], -1)
    labels = turns.clone()
    labels[..., :3] = IGNORE
    lead = torch.cat([torch.full((count, 1), IDS[START]), contexts.sentences.flatten(1)], 1)
    return torch.cat([lead, turns.flatten(1)], 1), torch.cat([torch.full_like(lead, IGNORE), labels.flatten(1)], 1)
