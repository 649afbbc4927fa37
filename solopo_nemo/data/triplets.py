"""Preference triplets and vanilla preference rows (one prompt): reading and validation."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from solopo_nemo.data.fields import bad_field, has, identifier, note_id, plain_json, records, required
from solopo_nemo.data.messages import (
    NOTHING,
    REFUSED,
    Answer,
    Message,
    Prompt,
    parse_answer,
    parse_prompt,
    several_answers,
)
from solopo_nemo.data.rows import read_rows
from solopo_nemo.runtime.errors import UserError, require
from solopo_nemo.runtime.warn import say_once, warn_once

PROMPT_COLUMNS = ("prompt_short", "prompt_long")
COLUMNS = (*PROMPT_COLUMNS, "chosen", "rejected")
TEMPLATE_COLUMNS = {"tools": list, "documents": list, "chat_template_kwargs": dict}
_READ = {"id", *COLUMNS, "answers", "meta", *TEMPLATE_COLUMNS}
_LIKE_A_PROMPT = re.compile(
    r"(developer|instruct|input|context|question|query|problem|message|conversation|dialog|turns|passage|text|demo|few_?shot"
    r"|response_format|parallel_tool|tool|function|prompt|prefix|persona|reference_doc)",
    re.IGNORECASE,
)
"""Names of columns that may belong into a prompt."""


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
        chosen: Preferred answer.
        rejected: Rejected answer.
        more_rejected: Further rejected answers.
        template: Template fields of the row: `tools` and `documents` (lists), `chat_template_kwargs` (mapping).
        sources: For each prompt, the row's field that it was read from, such as `prompt` of a vanilla row.
    """

    id: str
    where: str
    prompt_short: Prompt | None = None
    prompt_long: Prompt | None = None
    chosen: Answer | None = None
    rejected: Answer | None = None
    more_rejected: tuple[Answer, ...] = ()
    template: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def place(self, field: str) -> str:
        """Location of a field in the file, for messages."""
        return f"{self.where}: field {self.sources.get(field, field)}"

    def answers(self, field: str) -> list[tuple[str, str, Answer]]:
        """The answers of `chosen` or `rejected`: name of the column of token ids, location for messages, answer."""
        given = [getattr(self, field), *(self.more_rejected if field == "rejected" else ())]
        places = [field] if len(given) == 1 else [f"{field}[{index}]" for index in range(len(given))]
        return [
            (answer_column(field, index), f"{self.where}: field {place}", answer)
            for index, (place, answer) in enumerate(zip(places, given, strict=True))
        ]

    def same_answers(self, ids: Mapping[str, Sequence[int]]) -> bool:
        """True if the chosen answer equals every rejected one, but for outer white space or with the same token ids.

        Args:
            ids: Token ids by column; may be empty.
        """
        if self.chosen is None or self.rejected is None:
            return False
        return all(
            _stripped(self.chosen) == _stripped(rejected) or (column in ids and ids["chosen"] == ids[column])
            for column, _, rejected in self.answers("rejected")
        )


def _stripped(answer: Answer) -> Answer:
    return answer.strip() if isinstance(answer, str) else answer


def answer_column(field: str, index: int) -> str:
    """The column of a field's answer: `rejected`, `rejected_2`, `rejected_3`."""
    return f"{field}_{index + 1}" if index else field


def answer_columns(sample: Mapping[str, Any], field: str) -> list[str]:
    """The columns of a tokenized sample that hold an answer of `chosen` or `rejected`; other samples may have more."""
    found = [field]
    while len(sample.get(name := answer_column(field, len(found)), ())):
        found.append(name)
    return found


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
        unread |= {name for name, value in fields.items() if name not in read and value not in NOTHING}
        note_id(triplet.id, seen, row.where)
        yield triplet
    require(bool(seen), f"{path}: no samples in it: give a file with at least one row")
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
    prompt = next((row[name] for name in ("prompt", *needs.prompts) if has(row, name)), None)
    if has(row, "answers") and not any(has(row, field) for field in needs.responses):
        what = "missing: the row is a context with right answers, of which tools/sample_pairs.py makes pairs"
        raise bad_field(where, needs.responses[0], what)
    for field in needs.responses:
        answers = []
        for place, value in several_answers(required(row, field, where), field, where).items():
            answer, lead = parse_answer(value, prompt, place, where)
            answers.append(answer)
            if implied is not None and lead is not None and lead != implied:
                what = (
                    "starts with another prompt than chosen, both must answer the same prompt (write it into prompt, "
                    "where answers have several turns)"
                )
                raise bad_field(where, place, what)
            if lead is not None:
                implied, whole = lead, whole or field
        values[field], *more = answers
        if more:
            values["more_rejected"] = tuple(more)
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
    triplet = Triplet(id=own_id or default_id, where=where, template=template, sources=sources, **values)
    if any(isinstance(values[name], str) for name in needs.prompts):
        if template:
            raise bad_field(where, next(iter(template)), "is for a chat template, and this prompt is a plain string")
        for _, place, answer in (each for field in needs.responses for each in triplet.answers(field)):
            if not isinstance(answer, str):
                what = "holds turns, calls or reasoning for a chat template, and this prompt is a plain string"
                raise UserError(f"{place}: {what}: write it as messages")
    return triplet


def template_fields(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the template fields of a row: `tools`, `documents` and `chat_template_kwargs`, as far as it has them.

    Each value is a JSON value, or a string that contains one.

    Raises:
        UserError: A template field has the wrong type, or the row has a field of `REFUSED`.
    """
    for name, what in REFUSED.items():
        if row.get(name) not in NOTHING:
            raise bad_field(where, name, what)
    found: dict[str, Any] = {}
    for name, kind in TEMPLATE_COLUMNS.items():
        value = given = row.get(name)
        if isinstance(given, str):
            try:
                value = json.loads(given or "null")
            except (ValueError, RecursionError) as error:
                raise bad_field(where, name, f"is a string that is not JSON ({error})") from error
        if value not in NOTHING:
            if not isinstance(value, kind):
                raise bad_field(where, name, f"must be {'an object' if kind is dict else 'a list of objects'}")
            if kind is list:
                records(value, name, where)
            found[name] = plain_json(value, name, where, may_hold_null=isinstance(given, str))
    return found


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
