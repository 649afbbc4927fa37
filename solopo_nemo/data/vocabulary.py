"""Check of token ids against the vocabulary size. Megatron pads the embedding, so it would not detect larger ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

from solopo_nemo.runtime.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, vocab_size: int, where: str) -> None:
    """Check that every regular token of a tokenizer has an embedding.

    Added tokens are not checked here, because the data may not use them. A padding token without an embedding is
    replaced by the end token; padding is never attended to.

    Args:
        tokenizer: The tokenizer.
        vocab_size: Rows of the model's embedding in ``config.json``.
        where: Folder or key of the tokenizer, for messages.

    Raises:
        UserError: A token of the base vocabulary has no embedding.
    """
    added = tokenizer.added_tokens_decoder
    largest = max((i for i in tokenizer.get_vocab().values() if i not in added), default=0)
    require_token(largest, tokenizer, vocab_size, where)
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id >= vocab_size:
        tokenizer.pad_token = tokenizer.eos_token


def require_token(token_id: int, tokenizer: PreTrainedTokenizerBase, vocab_size: int, where: str) -> None:
    """Check that a token id has an embedding.

    Raises:
        UserError: The id has no embedding. The message names the token, its id and the vocabulary size.
    """
    if token_id >= vocab_size:
        raise UserError(
            f"{where}: token {tokenizer.convert_ids_to_tokens(token_id)!r} has id {token_id}, beyond the model's "
            f"vocab_size={vocab_size}: use the model's own tokenizer, or a model with an embedding for this token"
        )
