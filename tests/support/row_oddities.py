"""What may be odd about a row of the fuzz: each a function that changes the row of a ``Maker``."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from row_fuzz import Maker


def _field(name: str, *values: Any, refused: bool = False, marked: bool = False) -> Callable[[Maker], None]:
    """A field of the row; one with a mark has to be in the prompt."""

    def change(maker: Maker) -> None:
        value = maker.random.choice(values)
        text = json.dumps(value)
        if marked:
            text = text.replace("MARK", maker.mark())
        maker.case.row[name] = json.loads(text)
        if maker.random.random() < 0.3 and marked:
            maker.case.row[name] = text  # JSON as a string
        if refused or (marked and "plain" in maker.case.form):
            maker.refuse(f"field {name}")

    return change


def _message(name: str, *values: Any, role: str = "user", refused: bool = False, marked: bool = False) -> Any:
    """A field of messages."""

    def change(maker: Maker) -> None:
        text = json.dumps(maker.random.choice(values))
        if marked and maker.in_messages(lambda m: None, role):
            text = text.replace("MARK", maker.mark())
        if maker.in_messages(lambda m: m.update({name: json.loads(text)}), role) and refused:
            maker.refuse(name)

    return change


def _answer(name: str, *values: Any, refused: bool = True) -> Callable[[Maker], None]:
    def change(maker: Maker) -> None:
        value = maker.random.choice(values)
        for message in maker.answers():
            message[name] = value
        if refused:
            maker.refuse(name)

    return change


def _line(change: Callable[[str], str], refused: str | None) -> Callable[[Maker], None]:
    def apply(maker: Maker) -> None:
        maker.case.line = change(json.dumps(maker.case.row))
        maker.case.refused = refused

    return apply


def _value(refused: bool, *values: Any) -> Callable[[Maker], None]:
    """Another value of a prompt or an answer."""

    def change(maker: Maker) -> None:
        names = [n for n in ("prompt", "prompt_short", "prompt_long", "chosen", "rejected") if n in maker.case.row]
        name = maker.random.choice(names)
        maker.case.row[name] = maker.random.choice(values)
        if refused:
            maker.refuse(name)

    return change


def _as_text(maker: Maker) -> None:
    names = [name for name, value in maker.case.row.items() if isinstance(value, list) and value]
    if names:
        name = maker.random.choice(names)
        value = maker.case.row[name]
        maker.case.row[name] = maker.random.choice((json.dumps(value), json.dumps(value, indent=1), str(value)))
        maker.refuse(f"field {name}")


def _tool_turn(maker: Maker) -> None:
    """The question, a call and its result."""
    if not maker.prompts():
        return
    call = {"id": "abcdefghi", "type": "function"}
    call["function"] = {"name": maker.mark(), "arguments": {"x": maker.mark()}}  # type: ignore[assignment]
    content = maker.random.choice((None, "", "Let me see.", "MISSING"))
    asked: dict[str, Any] = {"role": "assistant", "content": content, "tool_calls": [call]}
    if content == "MISSING":
        del asked["content"]
    result = {"role": "tool", "content": f"{maker.mark()} ok"}
    if maker.case.template == "tools":
        result["tool_call_id"] = call["id"]  # type: ignore[assignment]
    ends = [{"role": "user", "content": maker.mark()}] if maker.random.random() < 0.3 else []
    for name in ("prompt", "prompt_short", "prompt_long"):
        if isinstance(maker.case.row.get(name), list):
            maker.case.row[name] += [asked, result, *ends]
    for name in ("chosen", "rejected"):
        value = maker.case.row[name]
        if isinstance(value, list) and len(value) > 1:
            value[-1:-1] = [asked, result, *ends]


def _history_reasoning(maker: Maker) -> None:
    if maker.in_messages(lambda m: None, "assistant"):
        word = maker.mark()
        maker.in_messages(lambda m: m.update(reasoning_content=word), "assistant")


def _spaces(maker: Maker) -> None:
    for name in ("chosen", "rejected"):
        if isinstance(maker.case.row[name], str):
            ends = maker.random.choices(("", " ", "\n", "\n\n", "\t", "  "), k=2)
            maker.case.row[name] = ends[0] + maker.case.row[name] + ends[1]


def _special(maker: Maker) -> None:
    word = maker.random.choice(("</s>", "<|im_end|>", "<s>", "<|eot_id|>", "<unk>"))
    for name in ("chosen", "rejected"):
        if isinstance(maker.case.row[name], str):
            maker.case.row[name] = f"So{maker.random.choice(('', ' ', chr(10)))}{word} it is"


def _long(maker: Maker) -> None:
    for message in maker.answers():
        message["content"] = "word " * 3000 + message["content"]


def _thoughts(maker: Maker) -> None:
    for message in maker.answers():
        message |= {"content": f"<think>\nSo\n</think>\n\n{message['content']}", "reasoning_content": ""}


def _parts(refused: bool, *parts: Any) -> Callable[[Maker], None]:
    """A list of parts as content; a refused one where there is a message."""

    def change(maker: Maker) -> None:
        role = maker.random.choice(("user", "user", "system"))
        if not maker.in_messages(lambda m: None, role):
            return
        chosen = maker.random.choice(parts)

        def apply(message: dict[str, Any]) -> None:
            message["content"] = json.loads(json.dumps(chosen).replace("TEXT", json.dumps(message["content"])[1:-1]))

        maker.in_messages(apply, role)
        if refused:
            maker.refuse("content")

    return change


TEXT_PART = {"type": "text", "text": "TEXT"}
SCHEMA = {"type": "object", "properties": {"x": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "MARK", "description": "of <é>", "parameters": SCHEMA}}
DEEP: Any = "x"
for _ in range(200):
    DEEP = [DEEP]
ODDITIES: dict[str, Callable[[Maker], None]] = {
    "tools": _field("tools", [TOOL], [TOOL, TOOL], marked=True),
    "tools again": _field("tools", [TOOL | {"more": {"z": 1, "a": [True, 0.5]}}], marked=True),
    "tools bad": _field("tools", 7, "none", True, ["f"], [[TOOL]], {"name": "f"}, '["f"]', refused=True),
    "tools null inside": _field("tools", [TOOL | {"strict": None}], refused=True),
    "tools empty": _field("tools", [], None, "", "[]", {}),
    "documents": _field("documents", [{"title": "T", "text": "MARK"}], marked=True),
    "documents bad": _field("documents", "a text", 3, ["a text"], [None], refused=True),
    "switch": _field("chat_template_kwargs", {"enable_thinking": False}, '{"enable_thinking": false}'),
    "switch on": _field("chat_template_kwargs", {"enable_thinking": True}, {}, None, ""),
    "switch bad": _field(
        "chat_template_kwargs", [], 7, "x", {"no_such": 1}, {"tools": [TOOL]}, {"messages": []}, {"tokenize": True}
    ),
    "row system": _field("system", "Be brief.", [{"role": "system", "content": "x"}], refused=True),
    "row fields": _field("images", ["a.png"], [{"path": "x"}], refused=True),
    "row history": _field("history", [["a", "b"]], refused=True),
    "row switch": _field("enable_thinking", False, True, refused=True),
    "row functions": _field("functions", [{"name": "f"}], refused=True),
    "row fields empty": _field("system", "", None),
    "metadata": _field("score", {"deep": [{"er": None}]}, DEEP, 10**400, [1.5], "x"),
    "messages as text": _as_text,
    "messages as text again": _as_text,
    "one part": _parts(False, [TEXT_PART], [TEXT_PART | {"cache": 1}]),
    "parts": _parts(
        True, [TEXT_PART, TEXT_PART], [TEXT_PART, {"type": "image", "image": "a.png"}], [{"type": "image_url"}], [],
        ["TEXT"], [{"text": "TEXT"}], [{"type": "text"}], [{"type": "text", "text": 3}], {"text": "TEXT"},
    ),
    "content": _message("content", None, 7, True, {}, [None], "", " \n", refused=True),
    "content of answers": _answer("content", None, 7, "", "\n", [], {}),
    "tool turn": _tool_turn,
    "tool turn again": _tool_turn,
    "calls": _message("tool_calls", [{"function": {"name": "MARK", "arguments": {}}, "id": "i"}], marked=True),
    "calls in history": _message(
        "tool_calls", [{"function": {"name": "MARK", "arguments": {}}, "id": "i"}], role="assistant", marked=True
    ),
    "calls with null": _message("tool_calls", [{"function": {"name": "f", "arguments": {"x": None}}}], refused=True),
    "call id": _message("tool_call_id", "MARK", marked=True),
    "name": _message("name", "MARK", marked=True),
    "reasoning": _message("reasoning_content", "MARK", role="assistant", marked=True),
    "reasoning in history": _history_reasoning,
    "thinking": _message("thinking", "MARK", role="assistant", marked=True),
    "message fields null": _message("name", None, "", []),
    "message metadata": _message("weight", 0, {"a": None}, [1], "x", 2.5),
    "message images": _message("images", ["a.png"], refused=True),
    "message deep": _message("weight", DEEP),
    "reasoning of answers": _answer("reasoning_content", "Because.", refused=False),
    "calls of answers": _answer("tool_calls", [{"function": {"name": "f", "arguments": {}}}], refused=False),
    "empty fields of answers": _answer("reasoning_content", "", refused=False),
    "no calls of answers": _answer("tool_calls", [], refused=False),
    "thoughts of answers": _thoughts,
    "metadata of answers": _answer("weight", 1, None, refused=False),
    "role": _message("role", "human", "User", None, 7, ["user"], "", "ipython", "assistant", refused=True),
    "developer": _message("role", "developer", role="system"),
    "answer of another role": _answer("role", "user", "system", "tool", None, 3),
    "value": _value(True, None, 7, True, [], {}, [[]], ["x"], [7], "", " \n", "\ud800", [{}], DEEP),
    "spaces": _spaces, "spaces again": _spaces, "special": _special, "special again": _special,
    "id": _field("id", [1], {}, 1.5, True, refused=True),
    "id of a number": lambda maker: maker.case.row.update(id=-maker.case.number),
    "half a line": _line(lambda line: line[: len(line) // 2], ":"),
    "nan": _line(lambda line: line[:-1] + ', "more": NaN}', None),
    "mark of the byte order": _line(lambda line: "\ufeff" + line, None),
    "a list": _line(lambda line: f"[{line}]", "list"),
    "a key twice": _line(lambda line: line[:-1] + ', "meta": "again"}', None),
    "nested beyond reason": _line(lambda line: "[" * 50_000, "broken JSON"),
    "long": _long,
}  # fmt: skip


_THINKING = (
    "thoughts of answers",
    "tools",
    "tools again",
    "switch",
    "switch on",
    "tool turn",
    "calls in history",
    "reasoning in history",
)
WRITTEN = {
    "hybrid": _THINKING,
    "always": _THINKING,
    "tools": ("tools", "tools again", "tool turn", "calls in history"),
    "documents": ("documents", "name", "developer", "one part"),
}
"""What the templates write that write more than texts."""
