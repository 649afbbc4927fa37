"""Extraction, normalization and matching of answers."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

ANSWER_PREFIX = "The answer is:"
"""Prefix of the final answer of a response, in prompts, training data and evaluation."""

_PREFIX = re.compile(re.escape(ANSWER_PREFIX), re.IGNORECASE)
_SHORT_ANSWER = 4
_ARTICLES = frozenset({"a", "an", "the"})
_ACRONYM_DOTS = re.compile(r"\b[^\W\d_](?:\.[^\W\d_])+\b\.?")
_DIGIT_COMMAS = re.compile(r"(?<=\d),(?=\d{3}\b)")
# every character other than a letter or digit separates words, except the point of a decimal number
_SEPARATORS = re.compile(r"(?!(?<=\d)\.(?=\d))[\W_]+")


def normalize(text: str) -> str:
    """Return SQuAD's normal form, which ignores case, accents, articles, punctuation and white space.

    Two rules differ from SQuAD: punctuation separates words ("US-based" becomes "us based"), and acronyms lose their
    dots ("U.S." becomes "us"). A text that consists of articles keeps them, so that no answer becomes empty.
    """
    if not text.isascii():
        decomposed = unicodedata.normalize("NFKD", text)
        text = "".join(character for character in decomposed if not unicodedata.combining(character))
    text = _ACRONYM_DOTS.sub(lambda match: match.group().replace(".", ""), text.casefold())
    words = _SEPARATORS.sub(" ", _DIGIT_COMMAS.sub("", text)).split()
    return " ".join([word for word in words if word not in _ARTICLES] or words)


def holds_answer(normal_text: str, normal_answers: Iterable[str]) -> bool:
    """True if a text contains one of the answers, all in normal form.

    An answer of four or more characters also matches inside a word ("german" in "germany"). A shorter answer matches
    whole words only; otherwise the alias "no" would match "north".
    """
    padded = f" {normal_text} "
    return any(
        answer in normal_text if len(answer) >= _SHORT_ANSWER else bool(answer) and f" {answer} " in padded
        for answer in normal_answers
    )


@dataclass(frozen=True)
class Stated:
    """The answer that a response states.

    Attributes:
        text: The text on the line after the last `The answer is:`; without that prefix, the last line with text.
        prefixed: True if the prefix is present and followed by text.
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
    """Sub-EM: true if the stated answer contains a gold answer or an alias, all in normal form."""
    return holds_answer(normalize(stated.text), [normalize(answer) for answer in answers])


def same_answers(chosen: str | None, rejected: str | None, ids: Mapping[str, Sequence[int]]) -> bool:
    """True if a chosen and a rejected answer are equal except for outer white space, or have the same token ids.

    Args:
        chosen: The chosen answer; None if the objective does not use it.
        rejected: The rejected answer; None if the objective does not use it.
        ids: Token ids with the keys `chosen` and `rejected`; may be empty.
    """
    if chosen is None or rejected is None:
        return False
    return chosen.strip() == rejected.strip() or ("rejected" in ids and ids["chosen"] == ids["rejected"])


def _lines(text: str) -> list[str]:
    """The lines that contain more than marks such as the asterisks of bold text."""
    return [line.strip() for line in text.splitlines() if normalize(line)]
