"""The bodies of a server's replies: whole answers, answers that are not whole, and error bodies under status 200."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from solopo_nemo.builders.pairs.backend import Sample

_COMPLETE = frozenset({"stop", "eos", "eos_token", "stop_sequence", "end_turn"})
_CUT = frozenset({"length", "max_tokens", "max_length", "max_output_tokens"})
_ABORTED = frozenset({"abort", "aborted", "error", "cancelled"})


@dataclass(frozen=True)
class Reply:
    """The answers of one request.

    Attributes:
        samples: The answers, in the order of the server's indices.
        prompt_tokens: Length of the prompt that the server read, in tokens; None if it does not tell.
        answer_tokens: Length of all answers in tokens; None if it does not tell.
    """

    samples: list[Sample]
    prompt_tokens: int | None
    answer_tokens: int | None = None


class NoAnswer(Exception):
    """A reply without any answer."""


class ErrorBody(Exception):
    """An error body under status 200: the code it names, or 500, and the body."""

    def __init__(self, code: int, value: Any) -> None:
        super().__init__()
        self.code, self.value = code, value


def read_reply(text: str, n: int) -> Reply:
    """Read the body of a reply.

    Args:
        text: The body.
        n: Maximum number of answers to return.

    Raises:
        NoAnswer: It holds no answer.
        ErrorBody: It holds an error.
        ValueError, TypeError, AttributeError, KeyError: It has another format than OpenAI's.
    """
    if text.lstrip().startswith(("data:", "event:")):
        raise ValueError("it streams, which it was not asked to")
    value = json.loads(text)
    if not isinstance(value, dict):
        raise TypeError(f"a {type(value).__name__}")
    if "choices" not in value or value.get("error"):
        _raise_error(value)
    choices = sorted(value["choices"] or [], key=_index)
    samples = [sample for sample in map(_sample, choices) if sample.reason not in _ABORTED]
    if not samples:
        raise NoAnswer("the server aborts the answer" if choices else "the server gives no answer (choices is empty)")
    usage = value.get("usage")
    told = usage if isinstance(usage, dict) else {}
    tokens = (told.get(name) for name in ("prompt_tokens", "completion_tokens"))
    return Reply(samples[:n], *(count if isinstance(count, int) and count > 0 else None for count in tokens))


def _raise_error(value: dict[str, Any]) -> None:
    error = value.get("error")
    inner: dict[str, Any] = error if isinstance(error, dict) else {}
    for place in (inner, value):
        for code in (str(place.get("code")), str(place.get("status"))):
            if code.isdigit() and 400 <= int(code) < 600:
                raise ErrorBody(int(code), value)
    if error or value.get("object") == "error" or value.get("detail"):
        raise ErrorBody(500, value)


def _index(choice: Any) -> int:
    index = choice.get("index")
    return index if isinstance(index, int) else 0


def _sample(choice: dict[str, Any]) -> Sample:
    """Read one choice.

    Raises:
        AttributeError, TypeError: It has another format.
    """
    message = choice["message"] if "message" in choice else {"content": choice["text"]}
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(part.get("text") or "" for part in content if part.get("type") in (None, "text"))
    if not isinstance(content, str | None):
        raise TypeError(f"content is a {type(content).__name__}")
    finish = choice.get("finish_reason")
    reason = finish.lower() if isinstance(finish, str) else "no finish reason"
    if reason in _COMPLETE:
        reason = ""
    elif reason in _CUT:
        reason = "length"
    if content is None and not reason:
        only = next(
            (name for name in ("refusal", "tool_calls", "reasoning_content", "reasoning") if message.get(name)), ""
        )
        reason = f"no text, only {only}" if only else "no text"
    # replace lone surrogates: JSON can represent them, UTF-8 files cannot
    clean = (content or "").encode("utf-8", "replace").decode("utf-8").strip()
    return Sample(clean, cut=bool(reason), reason=reason)
