"""Names, relations and sentence templates of the built-in question set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["person", "company", "town", "year"]

# ruff: noqa: SIM905 - a split string reads better than a column of literals
_STARTS = "Al Bel Cor Dan El Fen Gar Hel Il Jor Kal Lin Mar Nor Ol Pel Ros Sel Tam Ul Ver Wil Yor Zan".split()
_FIRST_ENDS = "a en i ia in ena ora us eth ina ille".split()
_LAST_ENDS = "son berg ley worth wick mann sky quist gren bow gate".split()
_TOWN_ENDS = "ton ford ville burg mouth dale haven stead field port minster".split()
_COMPANY_ENDS = "tek corp ex sys ware ix lux net gen dyne onics".split()


def _names(ends: list[str]) -> tuple[str, ...]:
    return tuple(start + end for start in _STARTS for end in ends)


FIRST_NAMES = _names(_FIRST_ENDS)
LAST_NAMES = _names(_LAST_ENDS)
TOWNS = _names(_TOWN_ENDS)
COMPANIES = _names(_COMPANY_ENDS)
YEARS = tuple(str(year) for year in range(1720, 1984))


@dataclass(frozen=True)
class Relation:
    """A relation between two kinds of entity.

    Attributes:
        name: the noun that questions use: "the employer of X".
        subject: kind of the subject.
        object: kind of the object.
        phrase: the verb phrase of the fact sentence. Every phrase has three words, so the distance between subject and
            object is constant. A two-layer model can then learn to read the facts.
        question: format string of the question, with a placeholder for the subject.
    """

    name: str
    subject: Kind
    object: Kind
    phrase: str
    question: str


RELATIONS: tuple[Relation, ...] = (
    Relation("employer", "person", "company", "is employed by", "Which company employs {}?"),
    Relation("birthplace", "person", "town", "was born in", "In which town was {} born?"),
    Relation("teacher", "person", "person", "was taught by", "Who taught {}?"),
    Relation("home", "company", "town", "is based in", "In which town is {} based?"),
    Relation("leader", "company", "person", "is led by", "Who leads {}?"),
    Relation("foundation", "company", "year", "was founded in", "In which year was {} founded?"),
    Relation("mayor", "town", "person", "is governed by", "Who governs {}?"),
    Relation("settlement", "town", "year", "was settled in", "In which year was {} settled?"),
)

# Filler sentences without facts. A third of the paragraphs end with one.
COLOUR: tuple[str, ...] = (
    "The winters there are mild.",
    "Many letters tell of it.",
    "An old song tells the story.",
    "Few people remember that today.",
    "The local papers wrote about it.",
    "This was well known at the time.",
    "The weather was fine that day.",
    "Nobody was surprised to hear it.",
    "A small museum shows the documents.",
    "The story is told every summer.",
    "It is still a quiet place.",
    "The records are kept in the library.",
)


def chains(hops: int) -> list[tuple[Relation, ...]]:
    """Every sequence of `hops` different relations in which the object of each can be the subject of the next."""
    found: list[tuple[Relation, ...]] = [(relation,) for relation in RELATIONS]
    for _ in range(hops - 1):
        found = [
            (*chain, relation)
            for chain in found
            for relation in RELATIONS
            if relation.subject == chain[-1].object and relation not in chain
        ]
    return found
