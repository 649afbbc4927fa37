"""Sub-EM: whether the answer that a response states holds a gold answer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from solopo_nemo.data.answers import ANSWER_PREFIX, holds_answer, normalize

_PREFIX = re.compile(re.escape(ANSWER_PREFIX), re.IGNORECASE)


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
    """Tell whether a gold answer or alias is contained in the stated answer, all in normal form."""
    return holds_answer(normalize(stated.text), [normalize(answer) for answer in answers])


def _lines(text: str) -> list[str]:
    """The lines that hold more than marks, such as the asterisks of bold text."""
    return [line.strip() for line in text.splitlines() if normalize(line)]
