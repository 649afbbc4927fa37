"""How answers are stated, their normal form, and whether a response gives the right one."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

ANSWER_PREFIX = "The answer is:"
"""What stands before the final answer of a response, in prompts, training data and evaluation."""

_PREFIX = re.compile(re.escape(ANSWER_PREFIX), re.IGNORECASE)
_SHORT_ANSWER = 4
_ARTICLES = frozenset({"a", "an", "the"})
_ACRONYM_DOTS = re.compile(r"\b[^\W\d_](?:\.[^\W\d_])+\b\.?")
_DIGIT_COMMAS = re.compile(r"(?<=\d),(?=\d{3}\b)")
# everything that is no letter or digit separates words, except the point of a decimal number
_SEPARATORS = re.compile(r"(?!(?<=\d)\.(?=\d))[\W_]+")


def normalize(text: str) -> str:
    """Return SQuAD's normal form: case, accents, articles, punctuation and white space do not count.

    Unlike SQuAD's, punctuation separates words ("US-based" is "us based"), while acronyms close up ("U.S." is "us").
    A text of articles alone keeps them, so that no answer becomes empty.
    """
    if not text.isascii():
        decomposed = unicodedata.normalize("NFKD", text)
        text = "".join(character for character in decomposed if not unicodedata.combining(character))
    text = _ACRONYM_DOTS.sub(lambda match: match.group().replace(".", ""), text.casefold())
    words = _SEPARATORS.sub(" ", _DIGIT_COMMAS.sub("", text)).split()
    return " ".join([word for word in words if word not in _ARTICLES] or words)


def holds_answer(normal_text: str, normal_answers: Iterable[str]) -> bool:
    """Tell whether a text holds one of some answers, all in normal form.

    Answers of four characters and more count inside words too ("german" in "germany"); shorter ones only as whole
    words, else the alias "no" would be in "north".
    """
    padded = f" {normal_text} "
    return any(
        answer in normal_text if len(answer) >= _SHORT_ANSWER else bool(answer) and f" {answer} " in padded
        for answer in normal_answers
    )


@dataclass(frozen=True)
class Stated:
    """What a response gives as its answer.

    Attributes:
        text: What follows the last `The answer is:` on its line; without one, the last line that holds text.
        prefixed: Whether there was such a prefix with something after it.
    """

    text: str
    prefixed: bool


def stated_answer(response: str) -> Stated:
    """Extract the answer of a response."""
    after = _PREFIX.split(response)
    if len(after) > 1 and normalize(after[-1]):
        return Stated(_lines(after[-1])[0], prefixed=True)
    return Stated((_lines(response) or [""])[-1], prefixed=False)


def is_right(stated: Stated, answers: Iterable[str]) -> bool:
    """Sub-EM: tell whether a gold answer or alias is contained in the stated answer, all in normal form."""
    return holds_answer(normalize(stated.text), [normalize(answer) for answer in answers])


def same_answers(chosen: str | None, rejected: str | None, ids: Mapping[str, Sequence[int]]) -> bool:
    """Tell whether a chosen and a rejected answer differ in white space at most, or have the same tokens.

    Args:
        chosen: An answer; None where the objective reads none.
        rejected: Another.
        ids: Their token ids, under their names; may be empty.
    """
    if chosen is None or rejected is None:
        return False
    return chosen.strip() == rejected.strip() or ("rejected" in ids and ids["chosen"] == ids["rejected"])


def _lines(text: str) -> list[str]:
    """The lines that hold more than marks, such as the asterisks of bold text."""
    return [line.strip() for line in text.splitlines() if normalize(line)]
