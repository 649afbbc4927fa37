"""A synthetic context: chains of facts about named entities. No two chains of a context share a name."""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass
from typing import Literal

from solopo_nemo.embedded.vocabulary import (
    COLOUR,
    COMPANIES,
    FIRST_NAMES,
    LAST_NAMES,
    TOWNS,
    YEARS,
    Kind,
    Relation,
    chains,
)
from solopo_nemo.runtime.errors import UserError

Split = Literal["train", "evaluation"]
MAX_HOPS = 3
MAX_PARAGRAPHS = 256
"""Largest context for which the vocabulary always has enough names."""
_COLOURED = 1 / 3
_EVALUATION_SHARE = 4  # one in four (subject, object) pairs is reserved for evaluation


@dataclass(frozen=True)
class Fact:
    """A fact: `subject` has `relation` to `object`."""

    subject: str
    relation: Relation
    object: str

    @property
    def sentence(self) -> str:
        """The sentence that states the fact in passages and answers."""
        return f"{self.subject} {self.relation.phrase} {self.object}."


@dataclass(frozen=True)
class Paragraph:
    """A passage: one fact, sometimes followed by a filler sentence."""

    fact: Fact
    text: str


@dataclass(frozen=True)
class World:
    """Chains of facts, and the shuffled paragraphs that state them.

    The first chain answers the question. The second chain has the same relations and other names, so every context
    contains a plausible incorrect answer. Chains share no name.
    """

    chains: tuple[tuple[Fact, ...], ...]
    paragraphs: tuple[Paragraph, ...]

    @property
    def question(self) -> str:
        """The question that the first chain answers."""
        return ask(self.chains[0])

    def nested(self, count: int) -> tuple[Paragraph, ...]:
        """The paragraphs of the first `count` facts, in the order of the whole context."""
        facts = [fact for chain in self.chains for fact in chain][:count]
        return tuple(paragraph for paragraph in self.paragraphs if paragraph.fact in facts)


def ask(chain: tuple[Fact, ...]) -> str:
    """The question whose answer is the last object of a chain. It names the first subject only."""
    subject = chain[0].subject
    for fact in chain[:-1]:
        subject = f"the {fact.relation.name} of {subject}"
    return chain[-1].relation.question.format(subject)


def belongs_to(split: Split, subject: str, object_: str) -> bool:
    """True if a fact about this pair belongs to the split. A pair belongs to exactly one split."""
    evaluation = zlib.crc32(f"{subject}|{object_}".encode()) % _EVALUATION_SHARE == 0
    return evaluation == (split == "evaluation")


class _Names:
    """Draws names without replacement."""

    def __init__(self, rng: random.Random, split: Split) -> None:
        self._split = split
        self._first = rng.sample(FIRST_NAMES, len(FIRST_NAMES))
        pools: dict[Kind, tuple[str, ...]] = {"person": LAST_NAMES, "company": COMPANIES, "town": TOWNS, "year": YEARS}
        self._pools = {kind: rng.sample(names, len(names)) for kind, names in pools.items()}

    def draw(self, kind: Kind, subject: str | None = None) -> str:
        """An unused name of a kind. With `subject`, the pair must belong to the split."""
        for index, last in enumerate(self._pools[kind]) if self._first else ():
            name = f"{self._first[-1]} {last}" if kind == "person" else last
            if subject is None or belongs_to(self._split, subject, name):
                del self._pools[kind][index]
                if kind == "person":
                    self._first.pop()
                return name
        raise UserError(
            f"built-in questions: no {kind} names left for a context this long; ask for fewer paragraphs "
            f"(up to {MAX_PARAGRAPHS})"
        )


def build_world(rng: random.Random, paragraphs: int, hops: int, split: Split) -> World:
    """Build a context for a question.

    Args:
        rng: source of all random choices.
        paragraphs: exact number of paragraphs, at least `2 * hops`.
        hops: facts to combine, 1 to 3.
        split: split that the facts belong to.

    Raises:
        UserError: `hops` is out of range, or there are too few or too many paragraphs.
    """
    if not 1 <= hops <= MAX_HOPS:
        raise UserError(f"built-in questions: hops is {hops}; choose 1 to {MAX_HOPS}")
    if paragraphs < 2 * hops:
        raise UserError(
            f"built-in questions: {paragraphs} paragraphs do not hold a question of {hops} hops and a wrong answer; "
            f"ask for {2 * hops} or more"
        )
    kinds = chains(hops)
    gold = rng.choice(kinds)
    names = _Names(rng, split)
    built: list[tuple[Fact, ...]] = []
    missing = paragraphs
    while missing:
        relations = (gold if len(built) < 2 else rng.choice(kinds))[:missing]
        subject = names.draw(relations[0].subject)
        chain: list[Fact] = []
        for relation in relations:
            chain.append(Fact(subject, relation, names.draw(relation.object, subject)))
            subject = chain[-1].object
        built.append(tuple(chain))
        missing -= len(chain)
    order = [
        Paragraph(fact, f"{fact.sentence} {rng.choice(COLOUR)}" if rng.random() < _COLOURED else fact.sentence)
        for facts in built
        for fact in facts
    ]
    rng.shuffle(order)
    return World(tuple(built), tuple(order))
