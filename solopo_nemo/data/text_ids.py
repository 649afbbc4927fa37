"""Texts to token ids, and the texts that a tokenizer encodes as special tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from solopo_nemo.runtime.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextIds:
    """A tokenizer for texts that hold their special tokens already."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def __call__(self, texts: Sequence[str], *, add_special_tokens: bool = False, **options: bool) -> list[list[int]]:
        """Return the token ids of each text."""
        # verbose=False: no warning for texts beyond model_max_length, because data.max_tokens is the limit
        options |= {"verbose": False, "add_special_tokens": add_special_tokens}
        return self.tokenizer(list(texts), **options)["input_ids"] if texts else []

    def letters(self, before: str, text: str) -> list[int]:
        """Encode `text` after `before`, with special tokens as plain text; empty if ids merge across the border."""
        own, both = (self([part], split_special_tokens=True)[0] for part in (before, before + text))
        return both[len(own) :] if both[: len(own)] == own else []

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of the special tokens."""
        added = {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return frozenset(added | set(self.tokenizer.all_special_ids))

    @cached_property
    def special_tokens(self) -> list[str]:
        """Texts of the special tokens."""
        return sorted({str(self.tokenizer.convert_ids_to_tokens(i)) for i in self.special_ids} - {""})

    @cached_property
    def added_tokens(self) -> list[str]:
        """Texts of the special tokens, and of others that are never split."""
        added = {str(token) for token in self.tokenizer.added_tokens_decoder.values() if str(token).strip()}
        return sorted(added | set(self.special_tokens))

    def first_special(self, text: str) -> tuple[int | None, str]:
        """Return the index of the first special-token text, and that text; `(None, "")` without one."""
        return first_of(self.special_tokens, text)

    def first_added(self, text: str) -> tuple[int | None, str]:
        """The same for added tokens, special ones before others."""
        found = self.first_special(text)
        return found if found[0] is not None else first_of(self.added_tokens, text)

    def id_of(self, token: str) -> int:
        """The id of an added token."""
        found = self.tokenizer.convert_tokens_to_ids(token)
        assert isinstance(found, int)
        return found

    @property
    def eos(self) -> int:
        """The id of the tokenizer's end token."""
        if self.tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no eos_token to close a response with: set it in tokenizer_config.json")
        return int(self.tokenizer.eos_token_id)


def first_of(tokens: Sequence[str], text: str) -> tuple[int | None, str]:
    """Return the first index of any of the tokens in a text, and the longest token at that index."""
    found = [(start, -len(token), token) for token in tokens if (start := text.find(token)) >= 0]
    return (min(found)[0], min(found)[2]) if found else (None, "")
