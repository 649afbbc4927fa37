"""Rows of every form: the ids are those of an independent rendering, or the row is refused in one line."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from chat_templates import END, SPECIAL, TEMPLATES
from row_fuzz import COUNT, Case, cases
from template_tokenizers import trained, with_chat_template
from transformers import PreTrainedTokenizerFast

from solopo_nemo.builders.pairs.inspect import inspect_file
from solopo_nemo.data.json_rows import Row
from solopo_nemo.data.rows import read_rows
from solopo_nemo.data.tokenize import TripletEncoder
from solopo_nemo.data.triplets import Needs, parse_triplet, sequence_columns
from solopo_nemo.runtime.errors import UserError

TRIPLET = Needs(("short_chosen", "short_rejected", "long_chosen", "long_rejected"))
ONE_PROMPT = Needs(("long_chosen", "long_rejected"))


@cache
def judge(kind: str, template: str) -> PreTrainedTokenizerFast:
    return with_chat_template(kind, template)


def read(row: Row, case: Case, encoder: TripletEncoder) -> dict[str, list[int]] | str:
    """What this project makes of a row: ids, or the line that refuses it."""
    needs = TRIPLET if "triplet" in case.form else ONE_PROMPT
    try:
        triplet = parse_triplet(row.fields(), needs, row.where, "none")
        return encoder.encode([triplet], needs)[0]
    except UserError as error:
        return str(error)


def as_given(value: Any) -> Any:
    """Messages with the text of a single text part in its place, and without the nulls that Arrow writes."""
    if isinstance(value, str):
        return value
    messages = [{key: own for key, own in m.items() if own is not None or key == "content"} for m in value]
    return [m | {"content": m["content"][0]["text"]} if isinstance(m.get("content"), list) else m for m in messages]


def options(row: dict[str, Any]) -> dict[str, Any]:
    """What a row gives the chat template."""
    given = {name: row.get(name) for name in ("tools", "documents", "chat_template_kwargs")}
    given = {name: json.loads(value) if isinstance(value, str) and value else value for name, value in given.items()}
    switches = given.pop("chat_template_kwargs") or {}
    return {name: value for name, value in given.items() if value} | switches


def conversations(case: Case) -> Iterator[tuple[str, str, Any, Any]]:
    """Name of the prompt, name of the answer, the prompt, the answer: a text or, as it was given, a message."""
    row = case.row
    for prompt, response in map(sequence_columns().__getitem__, TRIPLET.sequences):
        answer = as_given(row[response])
        last = answer if isinstance(answer, str) else answer[-1]
        if "triplet" in case.form:
            yield prompt, response, as_given(row[prompt]), last
        elif prompt == "prompt_long":
            inside = isinstance(answer, list) and len(answer) > 1
            yield prompt, response, answer[:-1] if inside else as_given(row["prompt"]), last


def check(case: Case, ids: dict[str, list[int]]) -> None:
    """The ids against transformers' rendering of the whole conversation, tokenized at once."""
    tokenizer, raw, given = judge(case.kind, case.template), trained(case.kind), options(case.row)
    for prompt, response, asked, said in conversations(case):
        message = {"role": "assistant", "content": said} if isinstance(said, str) else said
        answer = message["content"]
        own, end = ids[prompt], raw.token_to_id(END.get(case.template, "</s>"))
        if isinstance(asked, str):
            text, whole, end = asked, asked + answer + "</s>", raw.token_to_id("</s>")
        else:
            text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True, **given)
            whole = tokenizer.apply_chat_template([*asked, message], tokenize=False, **given)
        # only a plain prompt that does not begin with it gets the begin token
        begins = isinstance(asked, str) and not text.startswith("<s>")
        assert own == raw.encode(text, add_special_tokens=begins).ids
        if prompt == "prompt_long":
            assert all(mark in text for mark in case.marks), case.marks
        if not any(token in answer for token in SPECIAL):
            joined = raw.encode(whole, add_special_tokens=begins).ids
            assert own + ids[response] == joined[: len(joined) - joined[::-1].index(end)]
            continue
        # written letter by letter: nothing but the last token is special, and the text is the whole's
        *letters, last = ids[response]
        special = {raw.token_to_id(token) for token in SPECIAL}
        assert last == end
        assert special.isdisjoint(letters), "an answer holds a special token"
        body = whole[len(text) : whole.rindex(raw.id_to_token(end))]
        assert squeezed(text_of(case.kind, letters)) == squeezed(body)


def text_of(kind: str, ids: list[int]) -> str:
    """The text of ids."""
    if kind.startswith("byte-level"):
        return str(trained(kind).decode(ids, skip_special_tokens=False))
    tokens = map(trained(kind).id_to_token, ids)
    return b"".join(bytes([int(t[3:5], 16)]) if t.startswith("<0x") else t.encode() for t in tokens).decode()


def squeezed(text: str) -> str:
    """Text without white space."""
    return "".join(text.replace("▁", " ").split())


def run(found: list[Case], folder: Path) -> Counter[str]:
    """Judge all cases, those of one template, tokenizer and form in one file, which is also inspected."""
    outcomes: Counter[str] = Counter()
    groups: dict[tuple[str, str, bool], list[Case]] = {}
    for case in found:
        groups.setdefault((case.template, case.kind, "triplet" in case.form), []).append(case)
    for number, ((template, kind, _), group) in enumerate(groups.items()):
        path = folder / f"{number}.jsonl"
        path.write_text("".join(case.line + "\n" for case in group), encoding="utf-8", errors="surrogatepass")
        encoder, refused = TripletEncoder(with_chat_template(kind, template)), set()
        for line, (row, case) in enumerate(zip(read_rows(path), group, strict=True), start=1):
            said = f"{case.number} {case.oddity}: {case.line[:600]}"
            result = read(row, case, encoder)
            if isinstance(result, str):
                refused.add(line)
                outcomes[f"{template}: refused"] += 1
                assert result.startswith(f"{path}:{line}: "), (result, said)
                assert len(result.splitlines()) == 1, (result, said)
                assert not case.refused or case.refused in result, (result, said)
                continue
            assert not case.refused, ("was read", said)
            if row.value is not None:
                case.row = row.value
            try:
                check(case, result)
            except Exception as error:
                raise AssertionError(f"not as rendered: {said}") from error
            outcomes[f"{template}: read"] += 1
            outcomes[f"read: {case.oddity}"] += 1
        if any(isinstance(case.row.get("rejected"), str | list) for case in group):
            found_lines = (
                re.match(rf"{re.escape(str(path))}:(\d+): ", p) for p in inspect_file(path, encoder).problems
            )
            problems = {int(line[1]) for line in found_lines if line}  # others are of the whole file
            assert problems == refused, "inspect_triplets and training differ"
    return outcomes


def require_both(outcomes: Counter[str], count: int) -> None:
    """Neither all rows read nor all refused."""
    for template in TEMPLATES:
        share = outcomes[f"{template}: read"] * len(TEMPLATES) / count
        low, high = {"r1": (0, 0.3), "always": (0.1, 0.9)}.get(template, (0.25, 0.9))
        assert low <= share <= high, (template, share)


def test_a_tenth_of_the_rows(tmp_path: Path) -> None:
    found = cases(step=9)  # every template and tokenizer
    require_both(run(found, tmp_path), len(found))


@pytest.mark.long
def test_all_rows(tmp_path: Path) -> None:
    outcomes = run(cases(), tmp_path)
    require_both(outcomes, COUNT)
    rendered = ("tools", "documents", "switch", "tool turn", "calls in history", "reasoning in history", "name")
    assert all(outcomes[f"read: {oddity}"] for oddity in rendered), outcomes
