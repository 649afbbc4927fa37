"""Answers of several turns against transformers' own rendering of the whole conversation, tokenized at once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from chat_templates import END
from template_tokenizers import BEGINS, TOKENIZERS, trained, with_chat_template

from solopo_nemo.data.tokenize import TripletEncoder
from solopo_nemo.data.triplets import Needs, Triplet, read_triplets
from solopo_nemo.data.turns import answer_lengths, end_tokens, vocabulary_ids
from solopo_nemo.runtime.errors import UserError

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
NEEDS = Needs(("short_chosen", "short_rejected", "long_chosen"))
USER = [{"role": "user", "content": "Who?"}]
LONG = [{"role": "user", "content": "Long. Who?"}]
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
CALLED = [
    {"role": "assistant", "content": "I ask.", "tool_calls": [CALL]},
    {"role": "tool", "content": "Ann", "tool_call_id": "abcdefghi"},
    {"role": "assistant", "content": "It was Ann."},
]
SILENT = [CALLED[0] | {"content": ""}, *CALLED[1:]]
REASONED = [CALLED[0] | {"reasoning_content": "Hm."}, CALLED[1], CALLED[2] | {"reasoning_content": "So."}]
TALK = [
    {"role": "assistant", "content": "Ann."},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes, it was Ann."},
]


def encode(kind: str, template: str, answer: Any, **options: Any) -> tuple[TripletEncoder, dict[str, list[int]]]:
    encoder = TripletEncoder(with_chat_template(kind, template), **options)
    sample = Triplet("a", "f:1", prompt_short=USER, prompt_long=LONG, chosen=answer, rejected="Bob.")
    return encoder, encoder.encode([sample], NEEDS)[0]


def scored(encoder: TripletEncoder, ids: list[int]) -> list[str]:
    """The text of each run of scored ids."""
    runs: list[list[int]] = [[]]
    for i in ids:
        if i >= 0:
            runs[-1].append(i)
        elif runs[-1]:
            runs.append([])
    return [text_of(encoder, run) for run in runs if run]


def text_of(encoder: TripletEncoder, ids: list[int]) -> str:
    """The text of ids without spaces; ``<0x41>`` is a byte."""
    text = encoder.tokenizer.decode(ids).replace(" ", "").replace("▁", "")
    return re.sub("<0x(..)>", lambda found: chr(int(found[1], 16)), text)


CASES: dict[str, tuple[str, list[dict[str, Any]], list[str]]] = {
    "talk, chatml": ("chatml", TALK, ["Ann.<|im_end|>", "Yes,itwasAnn.<|im_end|>"]),
    "talk, llama3": ("llama3", TALK, ["Ann.<|eot_id|>", "Yes,itwasAnn.<|eot_id|>"]),
    "talk, mistral1": ("mistral1", TALK, ["Ann.</s>", "Yes,itwasAnn.</s>"]),
    "talk, llama2": ("llama2", TALK, ["Ann.</s>", "Yes,itwasAnn.</s>"]),
    "talk, zephyr": ("zephyr", TALK, ["Ann.</s>", "Yes,itwasAnn.</s>"]),
    "talk, gemma": ("gemma", TALK, ["Ann.<|im_end|>", "Yes,itwasAnn.<|im_end|>"]),
    "talk, a system message of the template": ("system", TALK, ["Ann.<|im_end|>", "Yes,itwasAnn.<|im_end|>"]),
    "talk, SmolLM2": ("smollm2", TALK, ["Ann.<|im_end|>", "Yes,itwasAnn.<|im_end|>"]),
    "call, Qwen2.5": (
        "qwen2_tools", CALLED, [
            'Iask.\n<tool_call>\n{"name":"f","arguments":{"x":1}}\n</tool_call><|im_end|>', "ItwasAnn.<|im_end|>",
        ],
    ),
    "call, Llama 3.1": (
        "llama3_tools", [SILENT[0] | {"content": None}, *SILENT[1:]], [
            '{"name":"f","arguments":{"x":1}}<|eot_id|>', "ItwasAnn.<|eot_id|>",
        ],
    ),
    "call, Mistral": ("tools", SILENT, ['[TOOL_CALLS]{"name":"f","arguments":{"x":1},"id":"abcdefghi"}</s>', "ItwasAnn.</s>"]),
    "call with reasoning, Qwen3": (
        "hybrid", REASONED, [
            '<think>\nHm.\n</think>\n\nIask.\n<tool_call>{"name":"f","arguments":{"x":1}}</tool_call><|im_end|>',
            "<think>\nSo.\n</think>\n\nItwasAnn.<|im_end|>",
        ],
    ),
    "one call": ("tools", SILENT[:1], ['[TOOL_CALLS]{"name":"f","arguments":{"x":1},"id":"abcdefghi"}</s>']),
}  # fmt: skip


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("name", CASES)
def test_the_ids_are_those_of_the_whole_conversation(name: str, kind: str) -> None:
    template, answer, wanted = CASES[name]
    encoder, ids = encode(kind, template, answer)
    raw = trained(kind)
    for prompt, own in ((USER, ids["prompt_short"]), (LONG, ids["prompt_long"])):
        text = encoder.tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        assert own == raw.encode(text, add_special_tokens=False).ids
        text = encoder.tokenizer.apply_chat_template([*prompt, *answer], tokenize=False)
        whole = raw.encode(text, add_special_tokens=False).ids
        end = raw.token_to_id(END.get(template, "</s>"))
        both = own + vocabulary_ids(ids["chosen"]).tolist()
        assert both == whole[: len(whole) - whole[::-1].index(end)]
    assert scored(encoder, ids["chosen"]) == wanted
    assert not encoder.rewritten
    _, last = encode(kind, template, answer, score="last")
    assert scored(encoder, last["chosen"]) == wanted[-1:]
    assert vocabulary_ids(last["chosen"]).tolist() == vocabulary_ids(ids["chosen"]).tolist()


@pytest.mark.parametrize("name", CASES)
def test_the_begin_token_stands_once_where_the_template_writes_it(name: str) -> None:
    template, answer, _ = CASES[name]
    encoder, ids = encode(BEGINS, template, answer)  # a tokenizer that puts one before every text
    begin = encoder.tokenizer.bos_token_id
    written = "bos_token" in str(encoder.tokenizer.chat_template) and template != "llama2"  # which writes one a turn
    for column in ("chosen", "rejected"):
        both = ids["prompt_short"] + vocabulary_ids(ids[column]).tolist()
        if template != "llama2":
            assert both.count(begin) == written
        assert (both[0] == begin) == ("bos_token" in str(encoder.tokenizer.chat_template))


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_template_that_rewrites_earlier_turns(kind: str) -> None:
    """Qwen3's template leaves out the empty think block of a call, once an answer follows."""
    encoder, ids = encode(kind, "hybrid", CALLED)
    ((where, difference),) = encoder.rewritten.items()
    assert where == "f:1: field chosen"
    assert difference.startswith("message 0 alone has '<think>\\n\\n</think>\\n\\n")
    call = 'Iask.\n<tool_call>{"name":"f","arguments":{"x":1}}</tool_call><|im_end|>'
    assert scored(encoder, ids["chosen"]) == [call, "<think>\n\n</think>\n\nItwasAnn.<|im_end|>"]
    whole = encoder.tokenizer.apply_chat_template([*USER, *CALLED], tokenize=False)
    both = ids["prompt_short"] + vocabulary_ids(ids["chosen"]).tolist()
    assert both == trained(kind).encode(whole.rstrip(), add_special_tokens=False).ids
    encoder, ids = encode(kind, "hybrid", CALLED, score="last")
    assert not encoder.rewritten
    assert scored(encoder, ids["chosen"]) == ["<think>\n\n</think>\n\nItwasAnn.<|im_end|>"]


def test_the_example_of_the_documentation() -> None:
    encoder = TripletEncoder(with_chat_template("byte-level", "qwen2_tools"))
    (sample,) = read_triplets(EXAMPLES / "tool_calls.jsonl", NEEDS)
    (ids,) = encoder.encode([sample], NEEDS)
    call = 'Ilookup{}.\n<tool_call>\n{{"name":"population","arguments":{{"city":"{}"}}}}\n</tool_call><|im_end|>'
    assert scored(encoder, ids["chosen"]) == [call.format("Oslo", "Oslo"), "Theansweris:717,710<|im_end|>"]
    assert scored(encoder, ids["rejected"]) == [call.format("Bergen", "Bergen"), "Theansweris:291,940<|im_end|>"]
    assert scored(encoder, ids["rejected_2"]) == ["Theansweris:1million<|im_end|>"]


def test_lengths_and_end_tokens_of_a_column() -> None:
    answers = [[5, 6, 2, ~7, ~8, 9, 3], [~4, ~2, 9, 2], [7, 2], [~1, 8]]
    whole = pyarrow.chunked_array([pyarrow.array([[1, 1], *answers[:2]])[1:], pyarrow.array(answers[2:])])
    lengths, scored_ = answer_lengths(whole)
    assert (lengths.tolist(), scored_.tolist()) == ([7, 4, 2, 2], [5, 2, 2, 1])
    assert end_tokens(whole) == {2, 3, 8}


REFUSED: dict[str, tuple[str, list[dict[str, Any]], dict[str, Any], str]] = {
    "a prompt that is no beginning": (
        "hybrid", CALLED, {"template_kwargs": {"enable_thinking": False}},
        "chosen: the chat template writes a prompt that is not the beginning of the whole conversation",
    ),
    "the text of no turn before a call": ("hybrid", SILENT, {}, r"the end of the prompt .* before the answer .\\n<tool_ca"),
    "calls that are not written": ("chatml", CALLED, {}, r"chosen\[0\]\.tool_calls: the chat template leaves it out"),
    "reasoning that is not written": ("chatml", [TALK[0] | {"reasoning_content": "So."}], {}, r"chosen\[0\]\.reasoning_c"),
    "special text": ("chatml", [*TALK[:2], TALK[2] | {"content": "a </s> b"}], {}, r"chosen\[2\]\.content: .*'</s>'"),
    "special text in a call": (
        "tools", [SILENT[0] | {"tool_calls": [{"id": "a", "function": {"name": "</s>", "arguments": {}}}]}], {},
        r"chosen\[0\]\.tool_calls: holds the text of the special token '</s>'",
    ),
    "a role that the template refuses": ("gemma", CALLED, {}, "refuses these messages"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_turns_that_cannot_be_trained(name: str) -> None:
    template, answer, options, message = REFUSED[name]
    with pytest.raises(UserError, match=f"^f:1: field .*{message}") as error:
        encode("byte-level", template, answer, **options)
    assert "\n" not in str(error.value)
