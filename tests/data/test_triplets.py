"""Rows of triplet files: fields, vanilla rows, answers of several turns, and errors that name the field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from samples import RowWriter, triplet_row

from solopo_nemo.data.triplets import Needs, read_triplets
from solopo_nemo.runtime.errors import UserError

SOLO = Needs(("short_chosen", "short_rejected", "long_chosen"))
LONG_PO = Needs(("long_chosen", "long_rejected"))
SFT = Needs(("short_chosen",))
USER = {"role": "user", "content": "Where?"}
SYSTEM = {"role": "system", "content": "Be brief."}


def answer(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def vanilla(prompt: Any, chosen: Any = "Here.", rejected: Any = "There.") -> dict[str, Any]:
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    return {name: value for name, value in row.items() if value is not None}


def test_needs_name_the_columns_in_order() -> None:
    assert SOLO.columns == ("prompt_short", "prompt_long", "chosen", "rejected")
    assert LONG_PO.columns == ("prompt_long", "chosen", "rejected")
    assert SFT.prompts == ("prompt_short",)
    assert SFT.responses == ("chosen",)
    with pytest.raises(ValueError, match="sequences"):
        Needs(("short",))


def test_fields_that_are_not_needed_are_not_looked_at(write_rows: RowWriter) -> None:
    (triplet,) = read_triplets(write_rows([triplet_row(rejected=7, prompt_long=None)]), SFT)
    assert triplet.rejected is None
    assert triplet.prompt_long is None


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        (vanilla("Where?"), "Where?"),
        (vanilla([SYSTEM, USER]), [SYSTEM, USER]),
        (vanilla([USER], [answer("Here.")], [answer("There.")]), [USER]),
        (vanilla(None, [USER, answer("Here.")], [USER, answer("There.")]), [USER]),
        (vanilla("Where?", [USER, answer("Here.")], [USER, answer("There.")]), [USER]),
        (vanilla([USER], [USER, answer("Here.")], "There."), [USER]),
        (vanilla([USER], "Here.", ["There."]), [USER]),
        (triplet_row(prompt_long="Where?", chosen="Here.", rejected="There."), "Where?"),
    ],
    ids=["strings", "messages", "assistant-messages", "implicit", "both", "mixed", "list", "triplet"],
)
def test_vanilla_rows_serve_where_one_prompt_is_enough(row: dict[str, Any], prompt: Any, write_rows: RowWriter) -> None:
    (triplet,) = read_triplets(write_rows([row]), LONG_PO)
    assert triplet.prompt_long == prompt
    assert (triplet.chosen, triplet.rejected) == ("Here.", "There.")


TALK = [answer("Here."), USER, answer("I said: here.")]
CALL = [answer("") | {"tool_calls": [{"function": {"name": "f"}}]}, {"role": "tool", "content": "1"}, answer("Here.")]


@pytest.mark.parametrize(
    ("row", "chosen"),
    [
        (vanilla([USER], TALK), TALK),
        (vanilla([USER], [USER, *TALK]), TALK),
        (vanilla("Where?", [USER, *TALK]), TALK),
        (vanilla(None, [USER, *TALK], [USER, *TALK[:2], answer("x")]), "I said: here."),  # the last message answers
        (vanilla([USER], CALL), CALL),
        (vanilla([USER], CALL[:1]), CALL[:1]),
        (triplet_row(chosen=TALK), TALK),
    ],
)
def test_answers_of_several_turns_go_on_from_the_prompt(
    row: dict[str, Any], chosen: Any, write_rows: RowWriter
) -> None:
    (triplet,) = read_triplets(write_rows([row]), LONG_PO)
    assert triplet.chosen == chosen


def test_several_rejected_answers(write_rows: RowWriter) -> None:
    rows = [vanilla([USER], "a", rejected) for rejected in (["x", "y"], [[answer("x")], TALK], "x")]
    found = list(read_triplets(write_rows(rows), LONG_PO))
    assert [(t.rejected, t.more_rejected) for t in found] == [("x", ("y",)), ("x", (TALK,)), ("x", ())]
    names = [[(column, place.rpartition(" ")[2]) for column, place, _ in t.answers("rejected")] for t in found]
    several = [("rejected", "rejected[0]"), ("rejected_2", "rejected[1]")]
    assert names == [several, several, [("rejected", "rejected")]]


def one(**changes: Any) -> str:
    return json.dumps(triplet_row(**changes))


ERRORS = {
    "missing field": (one(rejected=None), "rows.jsonl:1: field rejected: missing"),
    "null": (one(rejected=None)[:-1] + ', "rejected": null}', "field rejected: missing"),
    "a context": (one(chosen=None, rejected=None, answers=["x"]), "chosen: missing: the row is a context with right"),
    "missing prompt": (one(prompt_long=None), "field prompt_long: missing"),
    "missing id": (one(id=None), "field id: missing"),
    "id of a wrong type": (one(id=[1]), "field id: is a list"),
    "id that is a fraction": (one(id=17.5), "field id: is 17.5, must be a string or a whole number"),
    "id of a table without it": (one(id=float("nan")), "field id: is nan, must be"),
    "id beyond a float's precision": (one(id=2.0**60), "field id: is 1.152921504606847e+18, must be"),
    "ids that collide": (one(id=17.0) + "\n" + one(id="17"), "rows.jsonl:2: field id: '17' was used by an earlier"),
    "wrong type": (one(chosen=7), "field chosen: is a number, must be a list of objects"),
    "empty response": (one(chosen=" \n"), "field chosen: is empty"),
    "empty prompt": (one(prompt_short="  "), "field prompt_short: is empty"),
    "no messages": (one(prompt_short=[]), "field prompt_short: is empty"),
    "message that is none": (one(prompt_short=["hello"]), "field prompt_short[0]: is a string, must be an object"),
    "empty message": (one(prompt_short=[{"role": "user", "content": ""}]), "field prompt_short[0].content: is empty"),
    "message without role": (one(prompt_short=[{"content": "x"}]), "field prompt_short[0]: field role: missing"),
    "message without content": (one(prompt_short=[{"role": "user"}]), "field prompt_short[0]: field content: missing"),
    "content of a wrong type": (
        one(prompt_short=[{"role": "user", "content": 3}]),
        "prompt_short[0].content: is a num",
    ),
    "unknown role": (one(prompt_short=[{"role": "bot", "content": "x"}]), "prompt_short[0].role: unknown role 'bot'"),
    "prompt that ends with an answer": (one(prompt_short=[USER, answer("x")]), "must end with 'user'"),
    "response that ends with a question": (one(chosen=[USER]), "field chosen: ends with a message of role 'user'"),
    "prompts of two kinds": (one(prompt_long="plain"), "field prompt_long: must be messages"),
    "conversation of another prompt": (one(chosen=[USER, answer("x")]), "is not the prompt that the responses start"),
    "duplicate id": (one() + "\n" + one(), "rows.jsonl:2: field id: 't0' was used by an earlier row"),
    "vanilla row": (json.dumps(vanilla("Where?")), "vanilla preference row, which recipes/long_po.py takes"),
    "implicit vanilla row": (json.dumps(vanilla(None, [USER, answer("x")], [USER, answer("y")])), "recipes/long_po.py"),
    "a system field": (one(system="Be brief."), "field system: is not read: write it as the first message"),
    "earlier turns": (one(history=[["a", "b"]]), "field history: is not read: write its turns as messages"),
    "pictures": (one(images=["a.png"]), "field images: is not text"),
    "a switch in the row": (one(enable_thinking=False), "enable_thinking: is not read: write it into chat_template_kw"),
    "tools of a wrong type": (one(tools={"name": "f"}), "field tools: must be a list of objects"),
    "tools that are no JSON": (one(tools="[f]"), "field tools: is a string that is not JSON"),
    "tools with null": (one(tools=[{"name": "f", "strict": None}]), "field tools: holds null, which Arrow files write"),
    "tools of a plain prompt": (
        one(prompt_short="a", prompt_long="b", tools=[{"name": "f"}]),
        "field tools: is for a chat template, and this prompt is a plain string",
    ),
    "messages as text": (one(prompt_short=json.dumps([USER])), "prompt_short: is messages written as a string"),
    "messages as Python's text": (one(chosen=str([answer("x")])), "chosen: is messages written as a string"),
    "parts of content": (
        one(prompt_short=[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "x"}]}]),
        "field prompt_short[0].content: is a list of parts ['image', 'text']: one text part is taken",
    ),
    "pictures of a message": (one(prompt_short=[USER | {"images": ["a"]}]), "prompt_short[0].images: is not text"),
    "turns after a plain prompt": (
        one(prompt_short="a", prompt_long="b", chosen=[answer("x"), USER, answer("y")]),
        "field chosen: holds turns, calls or reasoning for a chat template, and this prompt is a plain string",
    ),
    "an answer without its end": (one(chosen=[answer("x"), USER]), "field chosen: ends with a message of role 'user'"),
    "two turns of the assistant": (
        one(chosen=[answer("x"), answer("y")]),
        "chosen[1].role: 'assistant' follows 'assistant'",
    ),
    "several chosen answers": (one(chosen=["x", "y"]), "field chosen: is a list of answers: give one"),
    "rejected answers of two kinds": (
        one(rejected=["x", [answer("y")]]),
        "field rejected: mixes strings, lists and ob",
    ),
    "an answer beside a message": (
        one(rejected=[answer("x"), "y"]),
        "field rejected: mixes strings, lists and objects",
    ),
    "an empty one of several answers": (one(rejected=["x", " "]), "field rejected[1]: is empty"),
    "no rejected answer": (one(rejected=[]), "field rejected: is empty"),
    "several answers to other questions": (
        json.dumps(vanilla(None, [USER, answer("x")], [[USER, answer("y")], [answer("x"), USER, answer("y")]])),
        "recipes/long_po.py",
    ),
    "calls as text": (
        one(prompt_short=[USER, answer("") | {"tool_calls": '[{"name": "f"}]'}, USER]),
        "field prompt_short[1].tool_calls: is a string, must be a list of objects",
    ),
    "one call": (
        one(prompt_short=[USER, answer("") | {"tool_calls": {"name": "f"}}, USER]),
        "field prompt_short[1].tool_calls: is an object, must be a list of objects: put this one into a list",
    ),
    "picture of a part": (
        one(prompt_short=[{"role": "user", "content": [{"type": "text", "text": "x", "image_url": "a"}]}]),
        "field prompt_short[0].content[0].image_url: is not text",
    ),
    "not JSON": (
        one(prompt_short=[USER | {"tool_calls": [{"function": {"x": "\ud800"}}]}]),
        "field prompt_short[0].tool_calls: is not plain JSON",
    ),
    "lone surrogate": (one(chosen="bad \ud800"), "field chosen: half a surrogate pair at character 4"),
    "not an object": (
        "[1, 2]",
        "rows.jsonl:1: a JSON list: each line must be one JSON object; a file that holds one array is",
    ),
    "an array": ("[\n{}]", "each line must be one JSON object; a file that holds one array is named .json"),
    "deep nesting": ("[" * 100_000, "rows.jsonl:1: broken JSON"),
}


@pytest.mark.parametrize(
    ("row", "place"),
    [
        (vanilla([USER]), "prompt"),
        (vanilla([USER]) | {"prompt_long": [USER], "id": "a"}, "prompt_long"),
        ({"chosen": [USER, answer("x")], "rejected": [USER, answer("y")]}, "chosen"),
    ],
)
def test_messages_name_the_field_that_the_row_has(row: dict[str, Any], place: str, write_rows: RowWriter) -> None:
    (triplet,) = read_triplets(write_rows([row]), LONG_PO)
    assert triplet.place("prompt_long") == f"{triplet.where}: field {place}"


@pytest.mark.parametrize(("content", "message"), ERRORS.values(), ids=ERRORS)
def test_errors_name_line_and_field_in_one_line(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content + "\n")
    with pytest.raises(UserError) as error:
        list(read_triplets(path, SOLO))
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_what_a_row_gives_its_template(write_rows: RowWriter) -> None:
    tools, call = [{"name": "f", "default": 1}], {"function": {"name": "f", "arguments": {}}}
    prompt = [
        USER | {"name": None, "weight": 0},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "", "tool_call_id": "1"},
        {"role": "developer", "content": [{"type": "text", "text": "x"}]},
        USER,
    ]
    given = {"tools": json.dumps([*tools, None][:1]), "chat_template_kwargs": {"thinking": False}, "documents": []}
    (triplet,) = read_triplets(write_rows([vanilla(prompt) | given | {"score": [None], "messages": []}]), LONG_PO)
    assert triplet.template == {"tools": tools, "chat_template_kwargs": {"thinking": False}}
    prompt[0] = USER | {"weight": 0}
    prompt[3]["content"] = "x"
    assert triplet.prompt_long == prompt


def test_answers_that_are_json(write_rows: RowWriter) -> None:
    texts = ['{"role": "engineer", "content": "x"}', '{"messages": [{"role": "user", "content": "x"}]}', "[1]"]
    rows = [vanilla("Where?", chosen=text) | {"id": text} for text in texts]
    assert [triplet.chosen for triplet in read_triplets(write_rows(rows), LONG_PO)] == texts


def test_responses_must_share_their_prompt(write_rows: RowWriter) -> None:
    other = [{"role": "user", "content": "When?"}, answer("x")]
    path = write_rows([vanilla(None, [USER, answer("x")], other)])
    with pytest.raises(UserError, match="field rejected: starts with another prompt than chosen"):
        list(read_triplets(path, LONG_PO))
