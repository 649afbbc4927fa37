from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from samples import TokenizerMaker

from solopo_nemo.data.tokenize import TripletEncoder
from solopo_nemo.data.tokenizer_files import load_tokenizer
from solopo_nemo.data.triplets import Needs, Triplet
from solopo_nemo.runtime.errors import UserError


def pair(encoder: TripletEncoder, prompt: Any, response: str) -> tuple[list[int], list[int]]:
    (ids,) = encoder.encode([Triplet("a", "a.jsonl:3", prompt_long=prompt, chosen=response)], Needs(("long_chosen",)))
    return ids["prompt_long"], ids["chosen"]


USER = {"role": "user", "content": "Where is it?\n"}
NEEDS = Needs(("short_chosen", "long_rejected"))


@pytest.mark.parametrize(
    ("template", "opens", "end"),
    [
        ("qwen", "<|im_start|>assistant\n", "<|im_end|>"),
        ("llama", "<|head|>assistant<|/head|>\n\n", "<|eot|>"),
        ("ignores_generation", "<|im_start|>assistant\n", "<|im_end|>"),
        ("no_end_token", "[assistant]\n", "<|end|>"),
    ],
)
def test_prompt_and_response_are_the_whole_conversation(
    template: str, opens: str, end: str, make_tokenizer: TokenizerMaker
) -> None:
    tokenizer = make_tokenizer(template)
    encoder = TripletEncoder(tokenizer)
    answer = "In Göttingen, of course. ✓"
    prompt, response = pair(encoder, [USER], answer)
    assert prompt == encoder.encode_prompts([[USER]], ["here"])[0]
    assert tokenizer.decode(response) == answer + end
    assert tokenizer.decode(prompt).endswith(opens)
    conversation = [USER, {"role": "assistant", "content": answer}]
    whole = tokenizer.apply_chat_template(conversation, tokenize=False)
    closes = "" if template == "no_end_token" else end
    assert whole.startswith(tokenizer.decode(prompt) + answer + closes)
    if template != "ignores_generation":
        assert prompt == tokenizer.apply_chat_template([USER], add_generation_prompt=True)


def test_template_with_a_system_message_of_its_own(make_tokenizer: TokenizerMaker) -> None:
    encoder = TripletEncoder(make_tokenizer("qwen"))
    own, given = encoder.render([USER], "a"), encoder.render([{"role": "system", "content": "Brief."}, USER], "b")
    assert "You are a helpful assistant." in own
    assert "You are a helpful assistant." not in given


@pytest.mark.parametrize(("template", "kept"), [("qwen", "\n yes \n"), ("llama", "yes")])
def test_white_space_around_a_response_as_the_template_has_it(
    template: str, kept: str, make_tokenizer: TokenizerMaker
) -> None:
    tokenizer = make_tokenizer(template)
    _, response = pair(TripletEncoder(tokenizer), [USER], "\n yes \n")
    assert tokenizer.decode(response[:-1]) == kept


def test_plain_strings_use_the_tokenizers_own_special_tokens(make_tokenizer: TokenizerMaker) -> None:
    tokenizer = make_tokenizer(None)
    triplet = Triplet(
        "a", "here", prompt_short="Q: where? A:", prompt_long="Q: why? A:", chosen=" Here", rejected=" So"
    )
    (ids,) = TripletEncoder(tokenizer).encode([triplet], NEEDS)
    assert tokenizer.decode(ids["prompt_short"]) == "<|begin|>Q: where? A:"
    assert tokenizer.decode(ids["chosen"]) == " Here<|end|>"
    assert list(ids) == ["prompt_short", "prompt_long", "chosen", "rejected"]


def test_a_batch_equals_its_samples(make_tokenizer: TokenizerMaker) -> None:
    encoder = TripletEncoder(make_tokenizer("llama"))
    prompts = [[USER], "plain", [USER, {"role": "assistant", "content": "?"}, USER], "text"]
    together = encoder.encode_prompts(prompts, ["here"] * 4)
    assert together == [encoder.encode_prompts([prompt], ["here"])[0] for prompt in prompts]


def test_special_token_text_in_a_response_is_plain_text(make_tokenizer: TokenizerMaker) -> None:
    tokenizer = make_tokenizer("qwen")
    encoder = TripletEncoder(tokenizer)
    text = "It closes with <|im_end|> and <|end|>"
    _, response = pair(encoder, [USER], text)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert response.count(end) == 1
    assert response[-1] == end
    assert tokenizer.convert_tokens_to_ids("<|end|>") not in response
    assert tokenizer.decode(response) == text + "<|im_end|>"
    assert end in encoder.encode_prompts([[USER]], ["here"])[0], "prompts keep their special tokens"


def test_nothing_is_cut_by_settings_of_the_tokenizer(make_tokenizer: TokenizerMaker) -> None:
    tokenizer = make_tokenizer(None, model_max_length=8)
    tokenizer.backend_tokenizer.enable_truncation(8)
    (ids,) = TripletEncoder(tokenizer).encode_prompts(["word " * 50], ["here"])
    assert tokenizer.decode(ids[1:]) == "word " * 50


@pytest.mark.parametrize(
    ("template", "messages", "error"),
    [
        (
            None,
            [USER],
            r"a\.jsonl:3: field prompt_long: the prompt is chat messages, but the tokenizer has no chat template",
        ),
        ("not_a_prefix", [USER], "not the beginning of the whole conversation"),
        (
            "refuses_system",
            [{"role": "system", "content": "x"}, USER],
            r"a\.jsonl:3: field prompt_long: the chat template refuses .*system",
        ),
    ],
)
def test_templates_that_do_not_work(
    template: str | None, messages: list[dict[str, str]], error: str, make_tokenizer: TokenizerMaker
) -> None:
    with pytest.raises(UserError, match=error):
        pair(TripletEncoder(make_tokenizer(template)), messages, "yes")


def test_no_end_token(make_tokenizer: TokenizerMaker) -> None:
    with pytest.raises(UserError, match="no eos_token"):
        pair(TripletEncoder(make_tokenizer(None, eos_token=None)), "Who?", "yes")


def test_load_tokenizer(make_tokenizer: TokenizerMaker, tmp_path: Path) -> None:
    tokenizer = make_tokenizer("qwen")
    tokenizer.save_pretrained(tmp_path / "good")
    assert load_tokenizer(tmp_path / "good").chat_template == tokenizer.chat_template
    with pytest.raises(UserError, match="no such folder"):
        load_tokenizer(tmp_path / "missing")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="no tokenizer can be loaded"):
        load_tokenizer(tmp_path / "bad")
