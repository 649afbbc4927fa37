"""Packed ids against the chat template, rendered with jinja2 and encoded with the tokenizers library alone."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
from chat_templates import END, TEMPLATES
from jinja2.sandbox import ImmutableSandboxedEnvironment
from template_tokenizers import TOKENIZERS, trained, with_chat_template
from tokenizers import AddedToken

from solopo_nemo.data.tokenize import TripletEncoder
from solopo_nemo.data.triplets import Needs, Triplet
from solopo_nemo.runtime.errors import UserError

NEEDS = Needs(("short_chosen", "short_rejected", "long_chosen"))


def encoder_of(kind: str, template: str, **switches: Any) -> TripletEncoder:
    return TripletEncoder(with_chat_template(kind, template), switches)


def rendered(kind: str, template: str, messages: list[dict[str, str]], generate: bool, **switches: Any) -> list[int]:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)  # jinja2's own is for HTML
    text = environment.from_string(TEMPLATES[template]).render(
        messages=messages, add_generation_prompt=generate, bos_token="<s>", eos_token="</s>", **switches
    )
    return trained(kind).encode(text, add_special_tokens=False).ids


def whole(kind: str, template: str, messages: list[dict[str, str]], **switches: Any) -> list[int]:
    """The conversation up to its last end token."""
    ids = rendered(kind, template, messages, False, **switches)
    end = trained(kind).token_to_id(END.get(template, "</s>"))
    return ids[: len(ids) - ids[::-1].index(end)]


def letters(encoder: TripletEncoder, ids: list[int]) -> str:
    """The text of ids, without spaces."""
    return encoder.tokenizer.decode(ids).replace(" ", "").replace("▁", "")


def triplet(short: str, long: str, chosen: str, rejected: str) -> Triplet:
    prompts = [[{"role": "user", "content": text}] for text in (short, long)]
    return Triplet("a", "f:1", prompt_short=prompts[0], prompt_long=prompts[1], chosen=chosen, rejected=rejected)


def check(kind: str, template: str, sample: Triplet, **switches: Any) -> dict[str, list[int]]:
    (ids,) = encoder_of(kind, template, **switches).encode([sample], NEEDS)
    for prompt, response in (("short", "chosen"), ("short", "rejected"), ("long", "chosen")):
        messages: Any = getattr(sample, f"prompt_{prompt}")
        own = ids[f"prompt_{prompt}"]
        assert own == rendered(kind, template, messages, True, **switches)
        answer = {"role": "assistant", "content": getattr(sample, response)}
        assert own + ids[response] == whole(kind, template, [*messages, answer], **switches)
    return ids


@pytest.mark.parametrize("added", [True, False])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_an_answer_may_be_closed_by_a_normal_token_or_by_text(kind: str, added: bool) -> None:
    tokenizer = with_chat_template(kind, "chatml")
    tokenizer.chat_template = str(tokenizer.chat_template).replace("<|im_", "<|my_")
    if added:  # as axolotl's `tokens:` and `add_tokens` do, not as special ones
        tokenizer.add_tokens([AddedToken(f"<|my_{name}|>", normalized=False) for name in ("start", "end")])
    encoder = TripletEncoder(tokenizer)
    for answer, special in (("Ann.", False), ("Ann </s> Bob", True)):
        (ids,) = encoder.encode([triplet("Who?", "Long. Who?", answer, "Bob.")], NEEDS)
        text = f"<|my_start|>user\nWho?<|my_end|>\n<|my_start|>assistant\n{answer}<|my_end|>"
        want = tokenizer(text, add_special_tokens=False)["input_ids"] + ([] if added else [tokenizer.eos_token_id])
        got = ids["prompt_short"] + ids["chosen"]
        assert got[-1] == want[-1] and (special or got == want)
        assert got.count(got[-1]) == (2 if added else 1)  # the prompt's and the answer's
        assert letters(encoder, got).endswith("<|my_end|>" if added else "</s>")
    if added:
        with pytest.raises(UserError, match=r"field chosen: holds '<\|my_end\|>', which ends an answer"):
            encoder.encode([triplet("Who?", "Long. Who?", "Ann.<|my_end|>", "Bob.")], NEEDS)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_think_blocks(kind: str) -> None:
    plain = triplet("Who?", "Long. Who?", "Ann.", "Bob.")
    encoder, block = encoder_of(kind, "hybrid"), "<think>\n\n</think>\n\n"
    ids = check(kind, "hybrid", plain)
    assert letters(encoder, ids["chosen"]) == f"{block}Ann.<|im_end|>"
    ids = check(kind, "hybrid", plain, enable_thinking=False)
    assert letters(encoder, ids["chosen"]) == "Ann.<|im_end|>"
    assert letters(encoder, ids["prompt_short"]).endswith(block)
    reasoned = triplet("Who?", "Long. Who?", "<think>\nSo it is.\n</think>\n\nAnn.", "<think>\nNo.\n</think>\n\nBob.")
    assert letters(encoder, check(kind, "hybrid", reasoned)["chosen"]).startswith("<think>\nSoitis.\n</think>")
    # the generation prompt has opened the block, and the answer goes on in it
    opened = triplet("Who?", "Long. Who?", "So it is.\n</think>\n\nAnn.", "No.\n</think>\n\nBob.")
    for sample in (reasoned, opened):
        ids = check(kind, "always", sample)
        assert letters(encoder, ids["prompt_short"]).endswith("<think>\n")
        assert letters(encoder, ids["chosen"]).startswith("Soitis.\n</think>")
    with pytest.raises(
        UserError, match=r"f:1: field chosen: the end of the prompt .* the answer begins with its reason"
    ):
        check(kind, "always", plain)


@pytest.mark.parametrize(("prompt", "warned"), [("<|im_start|>user\nWho?", True), ("<s>Who?", False), ("Who?", False)])
def test_a_rendered_conversation_as_a_plain_prompt_is_warned_of_once(
    prompt: str, warned: bool, said: list[str]
) -> None:
    sample = Triplet("a", "f:1", prompt_short=prompt, prompt_long=prompt, chosen=" Ann.", rejected=" Bob.")
    encoder_of("byte-level", "chatml").encode([sample] * 3, NEEDS)
    words = "holds '<|im_start|>', but its answer ends with '</s>' and not, as by the chat template, with '<|im_end|>'"
    assert [words in message for message in said] == [True] * warned


def test_a_template_that_renders_nothing_has_no_part_in_plain_prompts() -> None:
    encoder = encoder_of("byte-level", "chatml")
    encoder.tokenizer.chat_template = {"rag": "no default"}
    prompt = "<|im_start|>user\nWho?"
    encoder.encode([Triplet("a", "f:1", prompt_short=prompt, prompt_long=prompt, chosen=" A", rejected=" B")], NEEDS)


SWITCHED = TEMPLATES["r1"].replace(
    "<|Assistant|><think>\n'", "<|Assistant|>' }}{% if thinking is not defined or thinking %}{{ '<think>\n' }}{% endif %}{{ ''"
)  # fmt: skip


@pytest.mark.parametrize(("template", "way"), [(TEMPLATES["r1"], ""), (SWITCHED, "'{thinking: false}'")])
def test_a_switch_is_offered_where_it_mends(template: str, way: str) -> None:
    encoder = encoder_of("byte-level", "chatml")
    encoder.tokenizer.chat_template = template
    with pytest.raises(UserError, match="not the beginning of the whole conversation") as error:
        encoder.encode([triplet("Who?", "Long. Who?", "Ann.", "Bob.")], NEEDS)
    assert str(error.value).partition("; or give data.chat_template_kwargs=")[2] == way


TOOL = {"type": "function", "function": {"name": "f", "description": "finds"}}
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
CALLED = [
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "Ann"},
]
GIVEN: dict[str, tuple[str, list[dict[str, Any]], dict[str, Any]]] = {
    "tools": ("hybrid", CALLED[:1], {"tools": [TOOL]}),
    "a call and its result": ("hybrid", CALLED, {"tools": [TOOL]}),
    "with an id": ("tools", [*CALLED[:2], CALLED[2] | {"tool_call_id": "abcdefghi"}], {"tools": [TOOL]}),
    "no content": ("hybrid", [CALLED[0], CALLED[1] | {"content": None}, CALLED[2]], {}),
    "documents": ("documents", [CALLED[0] | {"name": "Al"}], {"documents": [{"title": "T", "text": "x"}]}),
    "a switch": ("hybrid", CALLED[:1], {"chat_template_kwargs": {"enable_thinking": False}}),
}


@pytest.mark.parametrize("name", GIVEN)
def test_what_a_row_gives_its_template_is_rendered(name: str) -> None:
    template, prompt, given = GIVEN[name]
    switches = given | given.get("chat_template_kwargs", {})
    sample = Triplet("a", "f:1", prompt_long=prompt, chosen="Ann.", template=given)
    plain = Triplet("b", "f:2", prompt_long=CALLED[:1], chosen="Ann.")
    encoder, needs = encoder_of("byte-level", template), Needs(("long_chosen",))
    ids, other = encoder.encode([sample, plain], needs)
    assert ids["prompt_long"] == rendered("byte-level", template, prompt, True, **switches)
    answered = [*prompt, {"role": "assistant", "content": "Ann."}]
    assert ids["prompt_long"] + ids["chosen"] == whole("byte-level", template, answered, **switches)
    assert other == encoder_of("byte-level", template).encode([plain], needs)[0], "a row's values are for it alone"


LEFT_OUT: dict[str, tuple[str, list[dict[str, Any]], dict[str, Any], str]] = {
    "tools": ("chatml", CALLED[:1], {"tools": [TOOL]}, "prompt_long: the chat template leaves out the row's tools"),
    "documents": ("hybrid", CALLED[:1], {"documents": [{"text": "x"}]}, "leaves out the row's documents"),
    "a switch": ("chatml", CALLED[:1], {"chat_template_kwargs": {"a": 1}}, "chat_template_kwargs.a: .* no such switch"),
    "a reserved switch": ("chatml", CALLED[:1], {"chat_template_kwargs": {"messages": []}}, "no such switch"),
    "a name": ("chatml", [CALLED[0] | {"name": "Al"}], {}, r"prompt_long\[0\]\.name: the chat template leaves it out"),
    "a call": ("chatml", [*CALLED[:1], CALLED[1] | {"content": "x"}, CALLED[2]], {}, r"\[1\]\.tool_calls: .* leaves it"),
    "the id of a call": ("hybrid", [CALLED[0] | {"tool_call_id": "i"}], {}, r"\[0\]\.tool_call_id: .* leave"),
    "a system message": ("zephyr", [{"role": "system", "content": "x"}, CALLED[0]], {}, r"\[0\]\.content: .*role system"),
    "no content, written None": (
        "system", [CALLED[0], CALLED[1] | {"content": None}, CALLED[2]], {}, r"\[1\]: .* writes a missing content",
    ),
    "what the template cannot add": (
        "chatml", [CALLED[0], CALLED[1] | {"content": None}, CALLED[2]], {}, "refuses these messages .*: .*None",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_the_template_leaves_out_is_refused(name: str) -> None:
    template, prompt, given, error = LEFT_OUT[name]
    sample = Triplet("a", "f:1", prompt_long=prompt, chosen="Ann.", template=given)
    with pytest.raises(UserError, match=f"^f:1: field .*{error}"):
        encoder_of("byte-level", template).encode([sample], Needs(("long_chosen",)))


def test_a_reference_of_a_tool_message_to_its_call_needs_no_place_in_the_prompt() -> None:
    given = [[*CALLED[:2], CALLED[2] | own] for own in ({}, {"tool_call_id": "call_0", "name": "f"})]
    samples = [Triplet("a", "f:1", prompt_long=prompt, chosen="Ann.") for prompt in given]
    plain, referring = encoder_of("byte-level", "hybrid").encode(samples, Needs(("long_chosen",)))
    assert plain == referring


def test_a_prompt_of_a_reasoning_model_is_rendered_for_sampling() -> None:
    encoder = encoder_of("byte-level", "r1")
    messages = [{"role": "user", "content": "Who?"}]
    assert encoder.encode_prompts([messages], ["here"]) == [rendered("byte-level", "r1", messages, True)]


def test_a_row_that_fits_such_a_template_is_taken() -> None:
    answer = "<think>\nBecause Ann was there."
    sample = triplet("Who?", "Long. Who?", answer, answer)
    ids = check("byte-level", "r1", sample)
    assert letters(encoder_of("byte-level", "r1"), ids["chosen"]) == "BecauseAnnwasthere.</s>"


def test_reasoning_that_the_template_drops_is_refused() -> None:
    encoder = encoder_of("byte-level", "r1")
    encoder.tokenizer.chat_template = TEMPLATES["r1"].replace("<think>\n", "")
    sample = triplet("Who?", "Long. Who?", "Because.</think>Ann.", "Bob.")
    with pytest.raises(UserError, match=r"f:1: field chosen: the chat template drops a part of this answer"):
        encoder.encode([sample], NEEDS)


@pytest.mark.parametrize("switches", [{"enable_thought": False}, {"tokenize": False}, {"messages": []}])
def test_switches_that_the_template_does_not_have(switches: dict[str, Any]) -> None:
    (key,) = switches
    with pytest.raises(UserError, match=rf"data\.chat_template_kwargs\.{key}: .* no such switch"):
        encoder_of("byte-level", "hybrid", **switches)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_plain_prompts(kind: str) -> None:
    encoder, raw = encoder_of(kind, "chatml"), trained(kind)
    for prompt, response in (("Q: who? A:", " Ann"), ("Q: who?\n", "Ann"), ("<s>Q</s>", "Ann"), ("<s>Q: A:", " Ann")):
        sample = Triplet("a", "f:1", prompt_long=prompt, chosen=response)
        (ids,) = encoder.encode([sample], Needs(("long_chosen",)))
        assert ids["prompt_long"] == raw.encode(prompt, add_special_tokens=False).ids
        both = raw.encode(prompt + response, add_special_tokens=False).ids
        assert ids["prompt_long"] + ids["chosen"] == [*both, raw.token_to_id("</s>")]
    joined = Triplet("a", "f:1", prompt_long="Q: who? A: ", chosen="The answer")
    if kind == "byte-level":
        with pytest.raises(UserError, match=r"f:1: field chosen: the end of the prompt '.* A: ' has other tokens"):
            encoder.encode([joined], Needs(("long_chosen",)))
