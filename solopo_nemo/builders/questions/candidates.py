"""Candidate questions: what a model writes about a group of passages, and the filters that need no model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from solopo_nemo.builders.questions.groups import Group
from solopo_nemo.builders.questions.passages import Passage
from solopo_nemo.data.answers import is_refusal, without_thoughts
from solopo_nemo.data.normal_form import holds, normalize, searchable

LONGEST_ANSWER = 20
"""Words of the longest answer that is kept; the prompt asks for ten."""
_DECODER = json.JSONDecoder(strict=False)
"""It takes line breaks in a string, which models write in their quotes."""


class Rejected(Exception):
    """What a model has written is no question to keep. The text is the rule, one of the names in the docs."""


@dataclass(frozen=True)
class Candidate:
    """A question that a model has written.

    Attributes:
        id: Id of its group.
        question: Its text.
        answer: The short answer.
        quotes: The quotes that it rests on.
        evidence: The passages that hold them, in the order of the corpus.
    """

    id: str
    question: str
    answer: str
    quotes: tuple[str, ...]
    evidence: tuple[Passage, ...]

    def row(self) -> dict[str, Any]:
        """Return the row that `build_contexts` takes. `quotes` is for the reader."""
        return {
            "id": self.id,
            "question": self.question,
            "answers": [self.answer],
            # a title may be empty, which a row says by leaving it out
            "supporting": [{"title": one.title, "text": one.text} if one.title else one.text for one in self.evidence],
            "quotes": list(self.quotes),
        }


def read_candidate(reply: str, group: Group) -> Candidate:
    """Read a model's reply, and check it against the passages.

    Args:
        reply: The text, with one JSON object of `question`, `answer` and `quotes`; text around it is ignored.
        group: The passages that the model was given.

    Raises:
        Rejected: `unreadable`, `declined`, `long_answer`, `quote_not_in_passages` or `answer_not_in_evidence`.
    """
    written = _object(without_thoughts(reply))
    if written is None:
        raise Rejected("unreadable")
    if not written["question"]:
        raise Rejected("declined")
    question, answer, quotes = (written.get(name) for name in ("question", "answer", "quotes"))
    answer = str(answer) if isinstance(answer, int | float) and not isinstance(answer, bool) else answer
    quotes = [quotes] if isinstance(quotes, str) else quotes
    texts = [question, answer, *(quotes if isinstance(quotes, list) else [])]
    if len(texts) < 3 or not all(isinstance(text, str) and _is_text(text) and normalize(text) for text in texts):
        raise Rejected("unreadable")
    question, answer, *quotes = (" ".join(text.split()) for text in texts)
    if len(answer.split()) > LONGEST_ANSWER:
        raise Rejected("long_answer")
    holders = [{place for place, one in enumerate(group.passages) if _holds(one, quote)} for quote in quotes]
    if not all(holders):
        raise Rejected("quote_not_in_passages")
    evidence = tuple(group.passages[place] for place in sorted(set.union(*holders)))
    if is_refusal(answer) or not any(_holds(one, answer) for one in evidence):
        raise Rejected("answer_not_in_evidence")
    return Candidate(group.id, question, answer, tuple(quotes), evidence)


def _holds(passage: Passage, text: str) -> bool:
    return holds(searchable(passage.text), [searchable(text)])


def _is_text(text: str) -> bool:
    """True without NUL and half characters, which JSON can escape."""
    return "\0" not in text and text.encode("utf-8", "replace").decode() == text


def _object(text: str) -> dict[str, Any] | None:
    """Return the first JSON object with the key `question`."""
    start = text.find("{")
    while start >= 0:
        try:
            value, _ = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict) and "question" in value:
            return value
        start = text.find("{", start + 1)
    return None
