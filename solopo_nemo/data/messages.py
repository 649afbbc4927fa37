"""Chat messages: prompts, answers of one or several turns, and their validation."""

from __future__ import annotations

import re
from typing import Any

from solopo_nemo.data.fields import bad_field, has, plain_json, records, required, required_text, text

Message = dict[str, Any]
Prompt = str | list[Message]
Answer = str | list[Message]
"""An assistant's text; or messages that go on from the prompt, the first and the last of role assistant."""

ROLES = ("system", "developer", "user", "assistant", "tool")
RENDERED = ("tool_calls", "tool_call_id", "name", "reasoning_content", "reasoning", "thinking", "tools", "documents")
"""Message fields that the chat template must render. Other fields that it does not read have no effect."""
NOTHING: tuple[Any, ...] = (None, "", [], {})

_MEDIA = "is not text, which is all that is trained: remove it, or the row"
_FIRST = "is not read: write it as the first message of the prompt, of role system"
REFUSED = {
    **dict.fromkeys(("image", "images", "image_url", "image_urls", "video", "videos", "video_url"), _MEDIA),
    **dict.fromkeys(("audio", "audios", "audio_url", "input_audio"), _MEDIA),
    **dict.fromkeys(("system", "system_prompt", "system_message"), _FIRST),
    **dict.fromkeys(
        ("tool_calls", "reasoning_content", "reasoning", "thinking"), "is not read here: it belongs into a message"
    ),
    "history": "is not read: write its turns as messages of the prompt",
    "functions": "is not read: write it as tools",
    "function_call": "is not read: write it as tool_calls",
    **dict.fromkeys(("enable_thinking", "reasoning_effort"), "is not read: write it into chat_template_kwargs"),
    "chat_template": "is not read: a template is the tokenizer's",
}
"""Row fields that are refused, because they would change the prompt and are not read."""
_MESSAGES_AS_TEXT = re.compile(
    r"""\s*(?:\[\s*\{\s*(?=["'])|\{\s*(?=["'](?:role|content)["']))"""
    rf""".*?(["'])role\1\s*:\s*(["'])(?:{"|".join(ROLES)})\2""",
    re.DOTALL,
)


def parse_prompt(value: Any, field: str, where: str) -> Prompt:
    """Validate a prompt: a string, or chat messages whose last one has the role user or tool.

    Raises:
        UserError: The prompt is invalid. The message names `where` and the field.
    """
    if isinstance(value, str):
        return _plain(value, field, where)
    messages = _messages(value, field, where)
    if messages[-1]["role"] not in ("user", "tool"):
        raise bad_field(where, field, f"ends with a message of role {messages[-1]['role']!r}, must end with 'user'")
    return messages


def several_answers(value: Any, field: str, where: str) -> dict[str, Any]:
    """Return the answers of a field by their places: a list of strings, or of lists of messages, holds several.

    Raises:
        UserError: The list mixes kinds, or the field is not `rejected` and has several answers.
    """
    kinds = {type(item) for item in value} if isinstance(value, list) else set()
    if not kinds & {str, list}:
        return {field: value}
    if len(kinds) > 1:
        what = "mixes strings, lists and objects: give one kind, a list of strings or a list of lists of messages"
        raise bad_field(where, field, what)
    if field != "rejected":
        raise bad_field(where, field, "is a list of answers: give one, a string or messages; rejected takes several")
    return {f"{field}[{index}]": item for index, item in enumerate(value)}


def parse_answer(value: Any, prompt: Any, field: str, where: str) -> tuple[Answer, list[Message] | None]:
    """Validate an answer: a string, messages that go on from the prompt, or a whole conversation.

    Without a given prompt, the last message of a conversation is its answer.

    Args:
        value: The answer.
        prompt: The prompt that the row gives, not validated; None without one.
        field: Place of the answer in the row, for messages.
        where: Location of the row, for messages.

    Returns:
        The answer, and the prompt with which a whole conversation begins; otherwise None.

    Raises:
        UserError: The answer is invalid. The message names `where` and the field.
    """
    if isinstance(value, str):
        return _plain(value, field, where), None
    messages = _messages(value, field, where)
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if messages[-1]["role"] != "assistant":
        role = messages[-1]["role"]
        raise bad_field(where, field, f"ends with a message of role {role!r}, must end with 'assistant'")
    first = turns[0]
    if first:
        given = len(prompt) if isinstance(prompt, list) else first if isinstance(prompt, str) else -1
        first = given if given in turns else len(messages) - 1
    if joined := [index for index in turns if index > first and index - 1 in turns]:
        raise bad_field(where, f"{field}[{joined[0]}].role", "'assistant' follows 'assistant': join the two messages")
    lead = parse_prompt(messages[:first], field, where) if first else None
    assert not isinstance(lead, str)
    return _shortest(messages[first:]), lead


def answer_text(answer: Answer) -> str:
    """The text of an answer, or of its last message."""
    return answer if isinstance(answer, str) else answer[-1].get("content") or ""


def _shortest(answer: list[Message]) -> Answer:
    """The text of an answer of one message that holds nothing else."""
    only = answer[0]
    # with an empty field a template no longer looks for the reasoning in the content
    plain = len(answer) == 1 and not any(only.get(n) or (n in only and "</think>" in only["content"]) for n in RENDERED)
    return only["content"] if plain else answer


def _plain(value: str, field: str, where: str) -> str:
    if _MESSAGES_AS_TEXT.match(value):
        raise bad_field(
            where, field, "is messages written as a string: write the list itself (or a message that holds this text)"
        )
    return text(value, field, where)


def _messages(value: Any, field: str, where: str) -> list[Message]:
    messages = []
    for index, item in enumerate(records(value, field, where)):
        place = f"{field}[{index}]"
        if not has(item, "role") and {"from", "value"} <= item.keys():
            raise bad_field(where, place, "is a turn of ShareGPT: write from as role (human is user), value as content")
        role = required_text(item, "role", where, place)
        if role not in ROLES:
            raise bad_field(where, f"{place}.role", f"unknown role {role!r}, must be one of {', '.join(ROLES)}")
        message = {key: item[key] for key in item if item[key] is not None or key == "content"}
        if message.get("content") is not None or not message.get("tool_calls"):
            content = _content(required(item, "content", f"{where}: field {place}"), f"{place}.content", where)
            may_be_blank = role in ("system", "tool") or bool(message.get("tool_calls"))
            message["content"] = text(content, f"{place}.content", where, may_be_blank=may_be_blank)
        for key, own in message.items():
            if key in REFUSED and key not in RENDERED and own:
                raise bad_field(where, f"{place}.{key}", REFUSED[key])
            if key == "tool_calls" and own:
                records(own, f"{place}.{key}", where)
            if key not in ("role", "content"):
                message[key] = plain_json(own, f"{place}.{key}", where, may_hold_null=key not in RENDERED)
        messages.append(message)
    return messages


def _content(value: Any, field: str, where: str) -> Any:
    """Return the text of a list with a single text part, and any other value unchanged."""
    if not isinstance(value, list):
        return value
    parts = [part.get("type") if isinstance(part, dict) else None for part in value]
    if parts != ["text"]:
        raise bad_field(where, field, f"is a list of parts {parts}: one text part is taken, or the text as a string")
    for key, own in value[0].items():
        if key in REFUSED and own not in NOTHING:
            raise bad_field(where, f"{field}[0].{key}", REFUSED[key])
    return value[0].get("text")
