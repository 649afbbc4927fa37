"""Packed ids against the chat template, rendered with jinja2 and encoded with the tokenizers library alone."""

from __future__ import annotations

from collections import Counter
from functools import cache
from random import Random
from typing import Any

import pytest
from chat_templates import END, SPECIAL, TEMPLATES
from jinja2.sandbox import ImmutableSandboxedEnvironment
from samples import musique_rows
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from solopo_nemo.data.tokenize import TripletEncoder
from solopo_nemo.data.triplets import Needs, Triplet
from solopo_nemo.runtime.errors import UserError

NEEDS = Needs(("short_chosen", "short_rejected", "long_chosen"))
# Qwen's; Llama 3's takes three digits
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TOKENIZERS = ("byte-level", "sentencepiece", "metaspace")


@cache
def trained(kind: str) -> str:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=kind != "byte-level", fuse_unk=True))
    alphabet: list[str] = []
    if kind == "byte-level":
        split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])  # type: ignore[assignment]
        tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    elif kind == "sentencepiece":  # as transformers converts Llama 2: every piece of text gets a space
        steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence(steps)  # type: ignore[assignment]
    else:  # the first piece alone
        space = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        tokenizer.pre_tokenizer = space  # type: ignore[assignment]
    texts = [paragraph["paragraph_text"] for row in musique_rows(20) for paragraph in row["paragraphs"]]
    texts += ["\n\n", "\n\n\n", ".\n", "  ", "    ", " [INST] [/INST]"] * 50
    special = SPECIAL if kind == "byte-level" else [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=alphabet, special_tokens=special, show_progress=False, max_token_length=12
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in ("<think>", "</think>")])
    return str(tokenizer.to_str())


def encoder_of(kind: str, template: str, **switches: Any) -> TripletEncoder:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(trained(kind)), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = TEMPLATES[template]
    return TripletEncoder(tokenizer, switches)


def rendered(kind: str, template: str, messages: list[dict[str, str]], generate: bool, **switches: Any) -> list[int]:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string(TEMPLATES[template]).render(
        messages=messages, add_generation_prompt=generate, bos_token="<s>", eos_token="</s>", **switches
    )
    return Tokenizer.from_str(trained(kind)).encode(text, add_special_tokens=False).ids


def whole(kind: str, template: str, messages: list[dict[str, str]], **switches: Any) -> list[int]:
    """The conversation up to its last end token."""
    ids = rendered(kind, template, messages, False, **switches)
    end = Tokenizer.from_str(trained(kind)).token_to_id(END.get(template, "</s>"))
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


PIECES = [
    *("word", "Who", "é", "日本", "👍", "1960", "def f():", "x", "The answer is:", "<think>", "</think>", "[INST]"),
    *(" ", "  ", "\n", "\n\n", "\t", "    ", ".", "-", "#", "<", "|", "▁", "\u00a0", "\u200b", "cafe\u0301"),
]


def text(random: Random) -> str:
    while not (made := "".join(random.choices(PIECES, k=random.randint(1, 8)))).strip():
        pass
    return made


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_ids_are_those_of_the_whole_conversation_or_the_row_is_refused(template: str, kind: str) -> None:
    random, outcomes = Random(f"{template} {kind}"), Counter[str]()
    for number in range(60):
        texts = [text(random) for _ in range(4)]
        if number % 2:  # answers that begin and end with letters, as most do
            texts = [f"So {part.replace('think>', '')} it is" for part in texts]
        try:
            check(kind, template, triplet(*texts))
            outcomes["same"] += 1
        except UserError as error:
            outcomes[str(error)] += 1
    if template == "r1":
        assert outcomes["same"] == 0
        assert all("not the beginning of the whole conversation" in line for line in outcomes), outcomes
        assert all("before the answer: data.chat_template_kwargs" in line for line in outcomes), outcomes
    elif template == "always":
        assert outcomes["same"] < 10, "its answers need their reasoning"
    else:
        assert outcomes["same"] >= 30, outcomes


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


def test_a_prompt_of_a_reasoning_model_is_rendered_for_sampling() -> None:
    encoder = encoder_of("byte-level", "r1")
    messages = [{"role": "user", "content": "Who?"}]
    assert encoder.encode_prompts([messages], ["here"]) == [rendered("byte-level", "r1", messages, True)]


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
    encoder, raw = encoder_of(kind, "chatml"), Tokenizer.from_str(trained(kind))
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
