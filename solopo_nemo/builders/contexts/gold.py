"""Preference pairs without sampling: the gold answer and an incorrect answer of the same kind."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from solopo_nemo.builders.contexts.prompt import NO_ANSWER, closing_line
from solopo_nemo.builders.contexts.question import Paragraph, Question
from solopo_nemo.data.answers import Stated, is_right
from solopo_nemo.data.normal_form import normalize

_MONTH = (
    r"(?:March|April|May|June|July|Jan(?:uary|\.)|Feb(?:ruary|\.)|Aug(?:ust|\.)|Sep(?:tember|t?\.)|Oct(?:ober|\.)"
    r"|Nov(?:ember|\.)|Dec(?:ember|\.))"
)
_NUMBER = r"(?<![\w.,-])\d+(?:[.,]\d+)*(?![\w-])"
# from the most to the least specific; the kind of an answer is the first whose pattern matches the whole answer
_KINDS = {
    "year": re.compile(r"(?<![\w.,-])(?:1\d{3}|20\d{2})(?![\w,-]|\.\d)"),
    "date": re.compile(rf"\b(?:\d{{1,2}} {_MONTH}(?: \d{{4}})?|{_MONTH} \d{{1,2}}, \d{{4}}|{_MONTH} \d{{1,4}})(?!\w)"),
    "number": re.compile(_NUMBER),
    # consecutive capitalised words (initials included), or one capitalised word that does not begin a sentence
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
        chosen: Response that names the evidence and states the gold answer.
        rejected: Response that names another passage and states an incorrect answer, or states that there is none.
        kind: Kind of the answers: year, date, number or name; no_answer if no incorrect answer was found.
    """

    chosen: str
    rejected: str
    kind: str


def gold_pair(question: Question, distractors: Sequence[Sequence[Paragraph]], random: Random) -> GoldPair:
    """Build the preference pair of a question.

    Args:
        question: The question with its evidence.
        distractors: Groups of distractor paragraphs, preferred groups first.
        random: Breaks ties between incorrect answers.
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
        if _is_wrong(candidate, asked, question.answers):
            # use as many titles as the correct response, so that their number does not reveal it
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
    if kind == "name":
        yield from names(paragraph.text)
        return
    unit = _NUMBER_WITH_UNIT.fullmatch(answer) if kind == "number" else None
    for match in _KINDS[kind].finditer(paragraph.text):
        yield match.group() + (unit.group(2) if unit else "")


def names(text: str) -> Iterator[str]:
    """Yield the names in a text, by their capitals: several words, or one that does not begin a sentence."""
    for match in _KINDS["name"].finditer(text):
        found = match.group()
        if opening := _OPENING_WORDS.match(found + " "):
            found = found[opening.end() :]
        if found and found[0].isupper():
            yield found


def _likeness(candidate: str, answer: str) -> tuple[bool, bool, bool]:
    """Rank a candidate: first those with the last word of the answer ("... County"), then those of equal length."""
    own, other = candidate.split(), answer.split()
    other_end = own[-1] != other[-1] or len(own) == 1
    return other_end, len(own) != len(other), abs(len(candidate) - len(answer)) > 1


def _is_wrong(candidate: str, asked: str, answers: Sequence[str]) -> bool:
    """True if a candidate is not in the question, not right, and neither contains nor is contained in an answer."""
    normal, golds = normalize(candidate), [normalize(answer) for answer in answers]
    if not normal or normal in asked or any(normal in gold or gold in normal for gold in golds):
        return False
    return not is_right(Stated(candidate, prefixed=True), answers)
