"""Answers of several turns: the ids of the whole conversation, in which the assistant's turns are scored.

For example, a call of a tool, its result and the final answer, after a rendered prompt (line breaks are left out)::

    <tool_call>..</tool_call><|im_end|>   <|im_start|>tool 42<|im_end|><|im_start|>assistant   It is 42.<|im_end|>
    scored                                context                                              scored

Context tokens are inputs that are not scored. A column of token ids holds such a token as ``~id``, a negative number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from solopo_nemo.data.chat_template import DROPPED, ChatTemplate, common_length, not_joined, require_beginning
from solopo_nemo.data.messages import Message
from solopo_nemo.data.text_ids import TextIds
from solopo_nemo.runtime.errors import UserError

if TYPE_CHECKING:  # packing imports this module, and needs no pyarrow
    import pyarrow

SCORED = ("assistant", "last")
"""The turns of an answer that are scored: all of the assistant's, or the last one."""
_SAID = ("content", "reasoning_content", "reasoning", "thinking", "tool_calls")
_PROBE = "probe"
_SHOWN = 40


def vocabulary_ids(column: Any) -> np.ndarray:
    """The ids of a column of tokens, scored or not, int64 ``[tokens]``."""
    ids = np.asarray(column, dtype=np.int64)
    return np.where(ids < 0, ~ids, ids)


def answer_lengths(column: pyarrow.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens, and scored tokens, of each answer of a column, fp64 ``[samples]``."""
    lengths, scored = [], []
    for chunk in column.chunks:
        lengths.append(chunk.value_lengths().to_numpy())
        counted = np.concatenate(([0], np.cumsum(chunk.flatten().to_numpy() >= 0)))
        ends = np.cumsum(lengths[-1])
        scored.append(counted[ends] - counted[ends - lengths[-1]])
    return np.concatenate(lengths).astype(np.float64), np.concatenate(scored).astype(np.float64)


def end_tokens(column: pyarrow.ChunkedArray) -> set[int]:
    """The ids that end a scored turn of any answer of a column; no answer is empty."""
    found = set[int]()
    for chunk in column.chunks:
        ids = chunk.flatten().to_numpy()
        is_end = np.append(ids[1:] < 0, True)
        is_end[np.cumsum(chunk.value_lengths().to_numpy()) - 1] = True
        found |= set(ids[is_end & (ids >= 0)].tolist())
    return found


def rewritten_turns(found: Mapping[str, str]) -> str:
    """The answers whose earlier turns a template rewrites, in words: how many, and the first; empty without any."""
    if not found:
        return ""
    where, difference = next(iter(found.items()))
    return f"the chat template rewrites earlier turns of {len(found)} answers, the first {where}: {difference}"


@dataclass(frozen=True)
class _Turn:
    """Characters ``[start, end)`` of an assistant's turn in the whole text; the end is that of its end token."""

    start: int
    end: int
    token: str


class Turns:
    """Encodes answers of several messages.

    1. Render the whole conversation ``W``, and for every turn of the assistant the prompt before it with the generation
       prompt, ``A``, and the conversation up to the turn, ``B``, as a server renders them.
    2. A turn's text is what ``W`` holds after ``A``, up to the end token with which ``B`` ends. The prompt must be the
       beginning of ``W``. Where another ``A`` or ``B`` is not, the template rewrites earlier turns: the answer is noted
       in `rewritten`, and its turns are those that ``W`` holds.
    3. Encode the text piece by piece, each from one end token to the next. The pieces together must be the ids of
       ``W``, and the ids of each ``A`` must be the beginning of its piece.

    Args:
        text_ids: The tokenizer.
        template: Its chat template.
        header: Text that opens the assistant's turn where the template ignores `add_generation_prompt`.
        rest: Text that it writes after the end token of a conversation.
        score: One of `SCORED`.

    Attributes:
        rewritten: By the location of an answer, how the template rewrites its earlier turns.
    """

    def __init__(self, text_ids: TextIds, template: ChatTemplate, header: str, rest: str, score: str) -> None:
        self._ids, self._template, self._score = text_ids, template, score
        self._header, self._rest = header, rest
        self.rewritten: dict[str, str] = {}

    def encode(
        self, prompt: list[Message], opened: str, prompt_ids: Sequence[int], answer: list[Message], where: str
    ) -> list[int]:
        """Return the ids of an answer; those of context are negative.

        Args:
            prompt: Messages of the prompt.
            opened: The rendered prompt.
            prompt_ids: Its ids.
            answer: Messages of the answer; the first and the last are the assistant's.
            where: Location and field of the answer, for messages.

        Raises:
            UserError: The template refuses the messages or leaves out a part of them, a turn has no end token or holds
                the text of a special token, or the ids of the prompt are not the beginning of the conversation's.
        """
        whole = self._template.apply([*prompt, *answer], where, generate=False)
        require_beginning(opened, whole, where, ", or write the earlier turns into the prompt" * (len(answer) > 1))
        turns, difference = self._rendered(prompt, opened, answer, whole, where)
        if difference:
            self.rewritten[where] = difference
            turns = self._found(opened, [turn.token for turn in turns], whole, where)
        turns = turns if self._score == "assistant" else turns[-1:]
        for turn in turns:
            if turn.token in whole[turn.start : turn.end - len(turn.token)]:
                raise UserError(f"{where}: holds {turn.token!r}, which ends an answer: remove that text")
        return self._tokens(opened, prompt_ids, turns, whole, where)

    def _rendered(
        self, prompt: list[Message], opened: str, answer: list[Message], whole: str, where: str
    ) -> tuple[list[_Turn], str]:
        """The assistant's turns by their own renderings, and where the whole text differs; empty if nowhere."""
        turns, difference, seen = [], "", 0
        for index in (i for i, message in enumerate(answer) if message["role"] == "assistant"):
            upto = [*prompt, *answer[: index + 1]]
            asked = opened if not index else self._template.apply(upto[:-1], where) + self._header
            said = self._template.apply(upto, where, generate=False)
            for place in range(seen, index + 1):
                self._template.require_used(upto, len(prompt) + place, said, f"{where}[{place}]", generate=False)
            seen = index + 1
            self._check_said(answer[index], asked, said, f"{where}[{index}]")
            closed = said.removesuffix(self._rest).rstrip()
            token = max((t for t in self._ids.added_tokens if closed.endswith(t)), key=len, default="")
            if not token:
                raise UserError(
                    f"{where}[{index}]: the chat template ends this turn with {closed[-20:]!r} and not with a token of "
                    "the tokenizer, which turns, calls and reasoning of an answer need: use another template"
                )
            turns.append(_Turn(len(asked), len(closed), token))
            if self._score == "assistant" or index == len(answer) - 1:
                difference = difference or _difference(asked, whole, index) or _difference(closed, whole, index)
        return turns, difference

    def _found(self, opened: str, tokens: list[str], whole: str, where: str) -> list[_Turn]:
        """The turns in the whole text alone: each from the text that opens it to its end token."""
        question, other = {"role": "user", "content": "question"}, {"role": "assistant", "content": _PROBE}
        before = self._template.apply([question], generate=False)
        asked = (self._template.apply([question]) + self._header)[len(before) :]
        answered = self._template.apply([question, other, question])[len(before) :].partition(_PROBE)[0]
        opening = asked[: common_length(asked, answered)]
        turns: list[_Turn] = []
        start = len(opened)
        for token in tokens:
            end = whole.find(token, start) + len(token)
            turns.append(_Turn(start, end, token))
            start = whole.find(opening, end) + len(opening)
        found = all(a.start < a.end <= b.start for a, b in pairwise(turns)) and turns[-1].start < turns[-1].end
        if not opening or not found or whole.count(opening, len(opened)) != len(tokens) - 1:
            raise UserError(
                f"{where}: the chat template rewrites earlier turns, and the text that opens a turn, {opening!r}, does "
                "not tell them apart: write the earlier turns into the prompt, or give data.score=last"
            )
        return turns

    def _check_said(self, message: Message, asked: str, said: str, where: str) -> None:
        """Check that a turn holds its content, and no text of a special token."""
        for name in _SAID:
            value = message.get(name) or ""
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            if token := self._ids.first_special(text)[1]:
                raise UserError(f"{where}.{name}: holds the text of the special token {token!r}: remove that text")
        content = message.get("content") or ""
        # the generation prompt of a thinking template can contain the start of the turn; white space may differ
        body = asked[len(asked) - len(content) :] + said.removeprefix(asked)
        if "".join(content.split()) not in "".join(body.split()):
            raise UserError(f"{where}.content: {DROPPED}")

    def _tokens(self, opened: str, prompt_ids: Sequence[int], turns: list[_Turn], whole: str, where: str) -> list[int]:
        """The ids after the prompt, those outside the turns negative."""
        origin = max(0, *map(opened.rfind, self._ids.special_tokens))
        begins = [origin, *(turn.end - len(turn.token) for turn in turns[:-1])]
        pieces = [whole[begin : turn.end] for begin, turn in zip(begins, turns, strict=True)]
        contexts = [whole[begin : turn.start] for begin, turn in zip(begins, turns, strict=True)]
        tail, joint, *ids = self._ids([opened[origin:], whole[origin : turns[-1].end], *pieces, *contexts])
        found: list[int] = []
        for number, turn in enumerate(turns):
            piece, context = ids[number], ids[number + len(turns)]
            if piece[: len(context)] != context or piece[-1] != self._ids.id_of(turn.token):
                raise not_joined(whole[: turn.start], whole[turn.start :], where)
            repeated = 1 if number else 0  # the end token before
            found += [~i for i in context[repeated:]] + piece[len(context) :]
        if vocabulary_ids(found).tolist() != joint or joint[: len(tail)] != tail:
            raise not_joined(opened, whole[len(opened) :], where)
        if list(prompt_ids[len(prompt_ids) - len(tail) :]) != tail:
            raise not_joined(opened, whole[len(opened) :], where)
        return found[len(tail) :]


def _difference(text: str, whole: str, index: int) -> str:
    if whole.startswith(text):
        return ""
    same = common_length(text, whole)
    return (
        f"message {index} alone has {text[same : same + _SHOWN]!r} where the whole conversation has "
        f"{whole[same : same + _SHOWN]!r}"
    )
