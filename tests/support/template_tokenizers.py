"""Small tokenizers of the three kinds that treat white space differently, to put chat templates on."""

from __future__ import annotations

from functools import cache

from chat_templates import MORE, SPECIAL, TEMPLATES
from samples import musique_rows
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

# Qwen's; Llama 3's takes three digits
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TOKENIZERS = ("byte-level", "sentencepiece", "metaspace")
BEGINS = "byte-level, begins"
"""A tokenizer that puts a begin token before plain text."""


@cache
def trained(kind: str) -> Tokenizer:
    """A tokenizer of a kind; its callers do not change it."""
    if kind == BEGINS:
        tokenizer = Tokenizer.from_str(trained("byte-level").to_str())
        begin = [("<s>", tokenizer.token_to_id("<s>"))]
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=begin)  # type: ignore[assignment]
        return tokenizer
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
    return tokenizer


def with_chat_template(kind: str, template: str) -> PreTrainedTokenizerFast:
    """A tokenizer of a kind with a template by its name."""
    own = Tokenizer.from_str(trained(kind).to_str())
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=own, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = (TEMPLATES | MORE)[template]
    return tokenizer
