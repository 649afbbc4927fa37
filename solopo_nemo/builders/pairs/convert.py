"""Conversion between this project's preference files and those of TRL, NeMo-RL and LongPO.

| format | row |
|---|---|
| `triplets` | `id, prompt_short, prompt_long, chosen, rejected`; with one prompt `id, prompt, chosen, rejected` |
| `trl` | `prompt, chosen, rejected`: messages or plain strings; the answers may contain the prompt |
| `nemo_rl` | `context`, `completions` with `rank` (the lowest is the best) and `completion`; all texts are messages |
| `longpo` | `prompt, questions, short_prompts, chosens, rejecteds`: questions on a long text, each with a short text |

LongPO puts the questions of a row into one conversation; each prompt is `text + blank line + question`. This module
makes each question a triplet with the same long text. The template fields of a row (`tools`, `documents`,
`chat_template_kwargs`) are copied to `triplets` and `trl`. Fields that training does not use are omitted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import isfinite
from pathlib import Path
from typing import Any

from solopo_nemo.data.fields import bad_field, has, identifier, records, required, required_text, text_list
from solopo_nemo.data.json_rows import Row
from solopo_nemo.data.messages import Answer, Message, Prompt
from solopo_nemo.data.rows import read_rows
from solopo_nemo.data.triplets import Needs, Triplet, parse_triplet, template_fields
from solopo_nemo.runtime.errors import UserError, require
from solopo_nemo.runtime.output import atomic_text, beside, keep_source, write_json_line
from solopo_nemo.runtime.progress import with_progress

_BLANK_LINE = "\n\n"
_QUESTION = _BLANK_LINE + "Question: "
_BOTH = ("short_chosen", "short_rejected", "long_chosen")
_ONE = ("long_chosen", "long_rejected")


def convert_file(source: Path, out: Path, to: str, side: str | None = None, skip_bad: bool = False) -> dict[str, int]:
    """Convert a file. The fields of each source row determine its format.

    Args:
        source: A source that `data.train` accepts, or a file in one of `FORMATS`.
        out: Output file, JSON lines.
        to: One of `FORMATS`.
        side: The prompt to keep, `short` or `long`, if the output format has a single prompt.
        skip_bad: Write bad rows to `<out>.rejects.jsonl` and continue.

    Returns:
        Counts: the `in`, `converted` and `rejected` rows of the source (`in` = `converted` + `rejected`), and the rows
        of `out`.

    Raises:
        UserError: A row is bad or does not fit the output format, and `skip_bad` is off; or no row can be converted.
    """
    keep_source(source, out)
    counts = {"in": 0, "converted": 0, "rejected": 0, "out": 0}
    with (
        atomic_text(out) as stream,
        atomic_text(beside(out, "rejects"), keep_empty=False) as rejects,
    ):
        for row in with_progress(read_rows(source), "converting"):
            counts["in"] += 1
            try:
                written = [_WRITERS[to](triplet, side) for triplet in _read(row, counts["in"] - 1)]
            except UserError as error:
                if not skip_bad:
                    raise UserError(f"{error}; --skip-bad goes on without such rows and lists them") from error
                counts["rejected"] += 1
                write_json_line(rejects, {"error": str(error), "row": row.value}, ascii_only=True)
                continue
            for value in written:
                write_json_line(stream, value)
            counts["converted"] += 1
            counts["out"] += len(written)
        require(counts["out"] > 0, f"{source}: nothing in it can be converted: give a file with at least one good row")
    return counts


def _read(row: Row, number: int) -> Iterator[Triplet]:
    """Yield the samples of a row of any format. A single prompt becomes the long prompt."""
    fields, where = row.fields(), row.where
    default_id = f"row-{number}"
    if has(fields, "chosens"):
        yield from _from_longpo(fields, where, default_id)
        return
    if has(fields, "completions"):
        fields = _from_nemo_rl(fields, where)
    both = any(has(fields, name) for name in ("prompt_short", "prompt_long"))
    yield parse_triplet(fields, Needs(_BOTH if both else _ONE), where, default_id)


def _from_nemo_rl(fields: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a row with a single prompt, and the best and the worst completion."""
    ranked = []
    for index, item in enumerate(records(required(fields, "completions", where), "completions", where)):
        rank = item.get("rank")
        if not isinstance(rank, int | float) or isinstance(rank, bool) or not isfinite(rank):
            raise bad_field(where, f"completions[{index}].rank", f"is {rank!r}, must be a number")
        ranked.append((rank, item.get("completion")))
    ranked.sort(key=lambda pair: pair[0])
    if ranked[0][0] == ranked[-1][0]:
        raise bad_field(where, "completions", "hold no two ranks, so that none is better than another")
    prompt = required(fields, "context", where)
    return {**fields, "prompt": prompt, "chosen": ranked[0][1], "rejected": ranked[-1][1]}


def _from_longpo(fields: dict[str, Any], where: str, default_id: str) -> Iterator[Triplet]:
    names = ("questions", "short_prompts", "chosens", "rejecteds")
    columns = [text_list(required(fields, name, where), name, where) for name in names]
    if len({len(column) for column in columns}) > 1 or not columns[0]:
        raise bad_field(where, "questions", f"must be as many as {', '.join(names[1:])}, and at least one")
    context = required_text(fields, "prompt", where)
    base = identifier(fields["id"], where) if has(fields, "id") else default_id
    for index, (question, short, chosen, rejected) in enumerate(zip(*columns, strict=True)):
        yield Triplet(
            id=base if len(columns[0]) == 1 else f"{base}-{index}",
            where=where,
            prompt_short=[{"role": "user", "content": short + _BLANK_LINE + question}],
            prompt_long=[{"role": "user", "content": context + _BLANK_LINE + question}],
            chosen=chosen,
            rejected=rejected,
            template=template_fields(fields, where),
        )


def _to_triplets(triplet: Triplet, side: str | None) -> dict[str, Any]:
    rejected: list[Any] = [answer for *_, answer in triplet.answers("rejected")]
    if len({isinstance(answer, str) for answer in rejected}) > 1:  # a list holds one kind
        rejected = [_messages(answer) for answer in rejected]
    answers = {"chosen": triplet.chosen, "rejected": rejected if triplet.more_rejected else triplet.rejected}
    prompts: dict[str, Any] = {"prompt_short": triplet.prompt_short, "prompt_long": triplet.prompt_long}
    if triplet.prompt_short is None or side is not None:
        prompts = {"prompt": _prompt_of(triplet, side)}
    return {"id": triplet.id, **prompts, **answers, **triplet.template}


def _to_trl(triplet: Triplet, side: str | None) -> dict[str, Any]:
    prompt = _prompt_of(triplet, side)
    if isinstance(prompt, str):
        return {"prompt": prompt, **_only_answers(triplet)}
    answers = {name: _messages(value) for name, value in _only_answers(triplet).items()}
    return {"prompt": prompt, **answers, **triplet.template}


def _to_nemo_rl(triplet: Triplet, side: str | None) -> dict[str, Any]:
    _refuse_template(triplet)
    prompt = _prompt_of(triplet, side)
    answers = [
        (rank, answer) for rank, name in enumerate(("chosen", "rejected")) for *_, answer in triplet.answers(name)
    ]
    return {
        "context": [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt,
        "completions": [{"rank": rank, "completion": _messages(answer)} for rank, answer in answers],
    }


def _to_longpo(triplet: Triplet, side: str | None) -> dict[str, Any]:
    _refuse_template(triplet)
    if triplet.prompt_short is None:
        raise bad_field(triplet.where, "prompt_short", "missing: LongPO needs a short and a long prompt")
    (short, question), (long, asked) = (
        _split(prompt, field, triplet.where)
        for prompt, field in ((triplet.prompt_short, "prompt_short"), (triplet.prompt_long, "prompt_long"))
    )
    if question != asked:
        raise bad_field(triplet.where, "prompt_long", "ends with another question than prompt_short")
    answers = _only_answers(triplet)
    for name, answer in answers.items():
        if not isinstance(answer, str):
            raise bad_field(triplet.where, name, "has turns, calls or reasoning, for which this format has no place")
    return {
        "id": triplet.id,
        "prompt": long,
        "questions": [question],
        "short_prompts": [short],
        "chosens": [answers["chosen"]],
        "rejecteds": [answers["rejected"]],
    }


_WRITERS: dict[str, Callable[[Triplet, str | None], dict[str, Any]]] = {
    "triplets": _to_triplets,
    "trl": _to_trl,
    "nemo_rl": _to_nemo_rl,
    "longpo": _to_longpo,
}
FORMATS = tuple(_WRITERS)


def _refuse_template(triplet: Triplet) -> None:
    for name in triplet.template:
        raise bad_field(triplet.where, name, "has no place in this format: write triplets or trl")


def _prompt_of(triplet: Triplet, side: str | None) -> Prompt:
    if side is None and triplet.prompt_short is not None:
        raise UserError(f"{triplet.where}: has two prompts, and the format one: choose --side short or --side long")
    prompt = triplet.prompt_short if side == "short" and triplet.prompt_short is not None else triplet.prompt_long
    assert prompt is not None
    return prompt


def _only_answers(triplet: Triplet) -> dict[str, Answer]:
    """The two answers, for a format that has no more."""
    assert triplet.chosen is not None
    assert triplet.rejected is not None
    if triplet.more_rejected:
        raise bad_field(
            triplet.where, "rejected", "has several answers, and this format one: write triplets or nemo_rl"
        )
    return {"chosen": triplet.chosen, "rejected": triplet.rejected}


def _messages(answer: Answer) -> list[Message]:
    return [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer


def _split(prompt: Prompt | None, field: str, where: str) -> tuple[str, str]:
    """Split a prompt into text and question at the last `Question:`, or else at the last blank line."""
    if not isinstance(prompt, list) or [message["role"] for message in prompt] != ["user"]:
        raise bad_field(where, field, "must be one user message, LongPO's format holds no other")
    content = prompt[0]["content"]
    mark = content.rfind(_QUESTION)
    mark = mark if mark >= 0 else content.rfind(_BLANK_LINE)
    before, after = content[: max(mark, 0)], content[mark + len(_BLANK_LINE) :]
    if mark < 0 or not before.strip() or not after.strip():
        raise bad_field(where, field, "has no blank line between text and question, so they cannot be told apart")
    return before, after
