"""Token ids against the rows of a model's embedding: Megatron pads those, so an id beyond them trains in silence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from solopo_nemo.runtime.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, vocab_size: int, where: str) -> None:
    """Check that the tokenizer is not larger than the model, as far as that is certain without any text.

    Added tokens beyond the vocabulary may never be used. Padding, which no token sees, becomes the end token if it is
    beyond it.

    Args:
        tokenizer: The tokenizer.
        vocab_size: Rows of the model's embedding, as ``config.json`` says.
        where: The tokenizer's folder or key, for messages.

    Raises:
        UserError: A token of the vocabulary itself has no embedding.
    """
    added = tokenizer.added_tokens_decoder
    largest = max((i for i in tokenizer.get_vocab().values() if i not in added), default=0)
    require_token(largest, tokenizer, vocab_size, where)
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id >= vocab_size:
        tokenizer.pad_token = tokenizer.eos_token


def require_token(token_id: int, tokenizer: PreTrainedTokenizerBase, vocab_size: int, where: str) -> None:
    """Check that a token id has an embedding.

    Raises:
        UserError: It has none; the token's text, its id and the model's size are named.
    """
    if token_id >= vocab_size:
        raise UserError(
            f"{where}: token {tokenizer.convert_ids_to_tokens(token_id)!r} has id {token_id}, beyond the model's "
            f"vocab_size={vocab_size}: use the model's own tokenizer, or a model with an embedding for this token"
        )
