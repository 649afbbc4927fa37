"""Preference pairs without sampling: the gold answer against a wrong one of the same kind."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from solopo_nemo.builders.contexts.prompt import NO_ANSWER, closing_line
from solopo_nemo.builders.contexts.question import Paragraph, Question
from solopo_nemo.data.answers import normalize

_MONTH = (
    r"(?:March|April|May|June|July|Jan(?:uary|\.)|Feb(?:ruary|\.)|Aug(?:ust|\.)|Sep(?:tember|t?\.)|Oct(?:ober|\.)"
    r"|Nov(?:ember|\.)|Dec(?:ember|\.))"
)
_NUMBER = r"(?<![\w.,-])\d+(?:[.,]\d+)*(?![\w-])"
# from the most to the least specific; an answer is of the first kind whose pattern matches all of it
_KINDS = {
    "year": re.compile(r"(?<![\w.,-])(?:1\d{3}|20\d{2})(?![\w,-]|\.\d)"),
    "date": re.compile(rf"\b(?:\d{{1,2}} {_MONTH}(?: \d{{4}})?|{_MONTH} \d{{1,2}}, \d{{4}}|{_MONTH} \d{{1,4}})(?!\w)"),
    "number": re.compile(_NUMBER),
    # capitalised words in a row, initials among them, or one that does not begin a sentence
    "name": re.compile(
        r"(?<![\w'-])(?:[A-Z][\w'-]*(?:(?<=\b[A-Z])\.)?(?: (?:of|de|the|von|van) (?=[A-Z])| (?=[A-Z])))+"
        r"[A-Z][\w'-]*\w"
        rf"|(?<=[a-z,] )(?!{_MONTH})[A-Z][a-z'-]*[a-z](?![\w'-])"
    ),
}
_OPENING_WORDS = re.compile(r"(?:The|An?|In|On|At|It|He|She|They|This|That|These|Its|His|Her|As|For|From|By|After) ")
_NUMBER_WITH_UNIT = re.compile(rf"({_NUMBER})( .+)")


@dataclass(frozen=True)
class GoldPair:
    """A chosen and a rejected response.

    Attributes:
        chosen: Names the evidence and gives the gold answer.
        rejected: Names other passages and gives a wrong answer, or gives none.
        kind: What the answers are: year, date, number, name; or no_answer where no wrong one was found.
    """

    chosen: str
    rejected: str
    kind: str


def gold_pair(question: Question, distractors: Sequence[Sequence[Paragraph]], random: Random) -> GoldPair:
    """Make the pair of a question.

    Args:
        question: The question with its evidence.
        distractors: Groups of distractor paragraphs, preferred ones first.
        random: Chooses among wrong answers that are equally good.
    """
    answer = question.answers[0].strip()
    titles = list(dict.fromkeys(paragraph.name for paragraph in question.supporting))
    chosen = f"{_evidence(titles)} {closing_line(answer)}"
    kind = _kind(answer)
    candidates = [
        ((*_likeness(candidate, answer), rank), random.random(), candidate, paragraph.name)
        for rank, group in enumerate(distractors if kind else ())
        for paragraph in group
        for candidate in _candidates(kind, answer, paragraph)
    ]
    asked = normalize(question.question)
    for *_, candidate, title in sorted(candidates):
        if _is_wrong(normalize(candidate), asked, question.normal_answers):
            # as many titles as the right answer, so that their number does not give it away
            return GoldPair(chosen, f"{_evidence([*titles[:-1], title])} {closing_line(candidate)}", kind)
    return GoldPair(chosen, f"The passages do not answer the question. {closing_line(NO_ANSWER)}", "no_answer")


def _evidence(titles: list[str]) -> str:
    if len(titles) == 1:
        return f'The passage "{titles[0]}" answers the question.'
    named = ", ".join(f'"{title}"' for title in titles[:-1])
    return f'The passages {named} and "{titles[-1]}" together answer the question.'


def _kind(answer: str) -> str:
    for kind, pattern in _KINDS.items():
        if pattern.fullmatch(answer):
            return kind
    if _NUMBER_WITH_UNIT.fullmatch(answer):
        return "number"
    words = _OPENING_WORDS.sub("", answer, count=1).split()
    return "name" if any(word[0].isupper() for word in words) else ""


def _candidates(kind: str, answer: str, paragraph: Paragraph) -> Iterator[str]:
    unit = _NUMBER_WITH_UNIT.fullmatch(answer) if kind == "number" else None
    for match in _KINDS[kind].finditer(paragraph.text):
        found = match.group()
        if kind == "name" and (opening := _OPENING_WORDS.match(found + " ")):
            found = found[opening.end() :]
        if found and (kind != "name" or found[0].isupper()):
            yield found + (unit.group(2) if unit else "")


def _likeness(candidate: str, answer: str) -> tuple[bool, bool, bool]:
    """Rank a candidate: first those that end like the answer ("... County"), then those that are as long."""
    own, other = candidate.split(), answer.split()
    other_end = own[-1] != other[-1] or len(own) == 1
    return other_end, len(own) != len(other), abs(len(candidate) - len(answer)) > 1


def _is_wrong(candidate: str, asked: str, answers: Sequence[str]) -> bool:
    """Tell whether a candidate neither holds nor is part of an answer or of the question, all in normal form."""
    return bool(candidate) and candidate not in asked and not any(candidate in a or a in candidate for a in answers)
