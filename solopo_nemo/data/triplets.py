"""Preference triplets and vanilla preference rows (one prompt): reading and validation."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from solopo_nemo.data.fields import bad_field, has, identifier, plain_json, records, required, text
from solopo_nemo.data.rows import read_rows
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.warn import say_once, warn_once

Message = dict[str, Any]
Prompt = str | list[Message]

ROLES = ("system", "developer", "user", "assistant", "tool")
RENDERED = ("tool_calls", "tool_call_id", "name", "reasoning_content", "reasoning", "thinking", "tools", "documents")
"""Message fields that the chat template must render. Other fields that it does not read have no effect."""
PROMPT_COLUMNS = ("prompt_short", "prompt_long")
COLUMNS = (*PROMPT_COLUMNS, "chosen", "rejected")
_NOTHING: tuple[Any, ...] = (None, "", [], {})

_MEDIA = "is not text, which is all that is trained: remove it, or the row"
_FIRST = "is not read: write it as the first message of the prompt, of role system"
_REFUSED = {
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
TEMPLATE_COLUMNS = {"tools": list, "documents": list, "chat_template_kwargs": dict}
_READ = {"id", *COLUMNS, "answers", "meta", *TEMPLATE_COLUMNS}
_LIKE_A_PROMPT = re.compile(
    r"(developer|instruct|input|context|question|query|problem|message|conversation|dialog|turns|passage|text|demo|few_?shot"
    r"|response_format|parallel_tool|tool|function|prompt|prefix|persona|reference_doc)",
    re.IGNORECASE,
)
"""Names of columns that may belong into a prompt."""
_MESSAGES_AS_TEXT = re.compile(
    r"""\s*(?:\[\s*\{\s*(?=["'])|\{\s*(?=["'](?:role|content)["']))"""
    rf""".*?(["'])role\1\s*:\s*(["'])(?:{"|".join(ROLES)})\2""",
    re.DOTALL,
)


@cache
def sequence_columns() -> dict[str, tuple[str, str]]:
    """The fields (prompt, response) of each sequence in ``solopo_nemo.objectives.SEQUENCES``."""
    from solopo_nemo.objectives import SEQUENCES  # imported here, because it imports torch

    return {name: (f"prompt_{sequence.prompt}", sequence.answer) for name, sequence in SEQUENCES.items()}


@dataclasses.dataclass(frozen=True)
class Needs:
    """The parts of a triplet that an objective uses.

    Attributes:
        sequences: Names of sequences, keys of `sequence_columns()`, as in `objective.sequences`.
    """

    sequences: tuple[str, ...]

    def __post_init__(self) -> None:
        unknown = set(self.sequences) - set(sequence_columns())
        if unknown or not self.sequences:
            raise ValueError(f"sequences must be some of {list(sequence_columns())}, got {list(self.sequences)}")

    @property
    def columns(self) -> tuple[str, ...]:
        """The fields used, in the order of `COLUMNS`."""
        used = {column for name in self.sequences for column in sequence_columns()[name]}
        return tuple(column for column in COLUMNS if column in used)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts used."""
        return tuple(column for column in self.columns if column in PROMPT_COLUMNS)

    @property
    def responses(self) -> tuple[str, ...]:
        """The responses used."""
        return tuple(column for column in self.columns if column not in PROMPT_COLUMNS)


@dataclasses.dataclass(frozen=True)
class Triplet:
    """One sample. Fields that the objective does not need are None.

    Attributes:
        id: Unique in its file.
        where: Location in the file, for messages.
        prompt_short: Chat messages, or a plain string.
        prompt_long: The same question with a longer context.
        chosen: Preferred assistant text.
        rejected: Rejected assistant text.
        template: Template fields of the row: `tools` and `documents` (lists), `chat_template_kwargs` (mapping).
        sources: For each prompt, the row's field that it was read from, such as `prompt` of a vanilla row.
    """

    id: str
    where: str
    prompt_short: Prompt | None = None
    prompt_long: Prompt | None = None
    chosen: str | None = None
    rejected: str | None = None
    template: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def place(self, field: str) -> str:
        """Location of a field in the file, for messages."""
        return f"{self.where}: field {self.sources.get(field, field)}"


def read_triplets(path: Path | str, needs: Needs) -> Iterator[Triplet]:
    """Yield the validated samples of a triplet file or a vanilla preference file, in file order.

    Only the fields in `needs` are read. If the objective needs one prompt, a row may have `prompt` instead.

    Args:
        path: `.jsonl`, `.jsonl.gz`, `.parquet`, a saved `datasets` folder, or a directory of such files.
        needs: The sequences that the objective uses.

    Raises:
        UserError: A row is invalid. The message names file, line or row, and field.
    """
    path = Path(path)
    seen: set[str] = set()
    unread: set[str] = set()
    for number, row in enumerate(read_rows(path)):
        fields = row.fields()
        triplet = parse_triplet(fields, needs, row.where, f"row-{number}")
        read = _READ if any(has(fields, name) for name in PROMPT_COLUMNS) else _READ | {"prompt"}
        unread |= {name for name, value in fields.items() if name not in read and value not in _NOTHING}
        if triplet.id in seen:
            raise bad_field(row.where, "id", f"{triplet.id!r} was used by an earlier row, ids must be unique")
        seen.add(triplet.id)
        yield triplet
    if not seen:
        raise UserError(f"{path}: no samples in it: give a file with at least one row")
    like_a_prompt = {name for name in unread if _LIKE_A_PROMPT.match(name)}
    if like_a_prompt:
        names = ", ".join(sorted(like_a_prompt))
        warn_once(f"{path}: {names}: not read, though the name may be a prompt's: what belongs into it goes there")
    if unread - like_a_prompt:
        say_once(f"{path}: columns that are not read: {', '.join(sorted(unread - like_a_prompt))}")


def parse_triplet(row: dict[str, Any], needs: Needs, where: str, default_id: str) -> Triplet:
    """Validate one row, and return the fields in `needs`.

    Args:
        row: The fields of the row.
        needs: The sequences that the objective uses.
        where: Location of the row, for messages.
        default_id: Id of a vanilla row without one.

    Raises:
        UserError: A field is missing or invalid. The message names `where` and the field.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    implied: list[Message] | None = None
    whole = ""
    for field in needs.responses:
        values[field], lead = _response(required(row, field, where), field, where)
        if lead is None:
            continue
        if implied is not None and lead != implied:
            raise bad_field(where, field, "starts with another prompt than chosen, both must answer the same prompt")
        implied, whole = lead, whole or field
    vanilla = not any(has(row, field) for field in ("prompt_short", "prompt_long"))
    if vanilla and len(needs.prompts) > 1 and (has(row, "prompt") or implied is not None):
        raise bad_field(
            where,
            "prompt_short",
            "missing: this is a vanilla preference row, which recipes/long_po.py takes; "
            "SoLoPO needs prompt_short and prompt_long (tools/build_contexts.py writes them)",
        )
    for field in needs.prompts:
        source = "prompt" if vanilla and has(row, "prompt") else field
        sources[field] = source
        if vanilla and implied is not None and source == field:
            values[field], sources[field] = implied, whole
        else:
            values[field] = _agree(parse_prompt(required(row, source, where), source, where), implied, source, where)
    if len({type(values[field]) for field in needs.prompts}) > 1:
        raise bad_field(where, "prompt_long", "must be messages if prompt_short is, and a plain string if it is one")
    own_id = identifier(row["id"], where) if has(row, "id") else None
    if own_id is None and not vanilla:
        required(row, "id", where)
    template = template_fields(row, where)
    if template and any(isinstance(values[name], str) for name in needs.prompts):
        raise bad_field(where, next(iter(template)), "is for a chat template, and this prompt is a plain string")
    return Triplet(id=own_id or default_id, where=where, template=template, sources=sources, **values)


def template_fields(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the template fields of a row: `tools`, `documents` and `chat_template_kwargs`, as far as it has them.

    Each value is a JSON value, or a string that contains one.

    Raises:
        UserError: A template field has the wrong type, or the row has a field of `_REFUSED`.
    """
    for name, what in _REFUSED.items():
        if row.get(name) not in _NOTHING:
            raise bad_field(where, name, what)
    found: dict[str, Any] = {}
    for name, kind in TEMPLATE_COLUMNS.items():
        value = given = row.get(name)
        if isinstance(given, str):
            try:
                value = json.loads(given or "null")
            except (ValueError, RecursionError) as error:
                raise bad_field(where, name, f"is a string that is not JSON ({error})") from error
        if value not in _NOTHING:
            if not isinstance(value, kind):
                raise bad_field(where, name, f"must be {'an object' if kind is dict else 'a list of objects'}")
            if kind is list:
                records(value, name, where)
            found[name] = plain_json(value, name, where, may_hold_null=isinstance(given, str))
    return found


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


def _response(value: Any, field: str, where: str) -> tuple[str, list[Message] | None]:
    """Return the assistant's text, and the prompt if the field is a whole conversation; otherwise None."""
    if isinstance(value, str):
        return _plain(value, field, where), None
    messages = _messages(value, field, where)
    last = messages[-1]
    if last["role"] != "assistant":
        raise bad_field(where, field, f"ends with a message of role {last['role']!r}, must end with 'assistant'")
    for name in RENDERED:
        # with an empty one a template no longer looks for the reasoning in the content
        if last.get(name) or (name in last and "</think>" in last["content"]):
            what = "is not trained: write it into content as the chat template writes it, or remove it"
            raise bad_field(where, f"{field}[{len(messages) - 1}].{name}", what)
    lead = parse_prompt(messages[:-1], field, where) if len(messages) > 1 else None
    assert not isinstance(lead, str)
    return last["content"], lead


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
        role = text(required(item, "role", f"{where}: field {place}"), f"{place}.role", where)
        if role not in ROLES:
            raise bad_field(where, f"{place}.role", f"unknown role {role!r}, must be one of {', '.join(ROLES)}")
        message = {key: item[key] for key in item if item[key] is not None or key == "content"}
        if message.get("content") is not None or not message.get("tool_calls"):
            content = _content(required(item, "content", f"{where}: field {place}"), f"{place}.content", where)
            may_be_blank = role in ("system", "tool") or bool(message.get("tool_calls"))
            message["content"] = text(content, f"{place}.content", where, may_be_blank=may_be_blank)
        for key, own in message.items():
            if key in _REFUSED and key not in RENDERED and own:
                raise bad_field(where, f"{place}.{key}", _REFUSED[key])
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
        if key in _REFUSED and own not in _NOTHING:
            raise bad_field(where, f"{field}[0].{key}", _REFUSED[key])
    return value[0].get("text")


def _agree(prompt: Prompt, implied: list[Message] | None, field: str, where: str) -> Prompt:
    """Return the prompt of a row, after a check against the prompt that its responses repeat, if any."""
    if implied is None or prompt == implied:
        return prompt
    asked = [message.get("content") for message in implied if message["role"] != "system"]
    if [prompt] == asked:
        return implied
    raise bad_field(
        where, field, "is not the prompt that the responses start with, the responses must answer this prompt"
    )
