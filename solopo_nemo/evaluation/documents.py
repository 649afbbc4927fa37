"""Truncation of documents that exceed the model's window: the middle is removed, as in LongBench's code."""

from __future__ import annotations

from collections.abc import Callable

from solopo_nemo.evaluation.models import EvaluatedModel

_TRIES = 8


def fitted(model: EvaluatedModel, build: Callable[[str], str], document: str, room: int) -> tuple[str, int]:
    """Build a prompt that fits the model's window by removing the middle of the document.

    LongBench truncates the whole prompt. This function truncates the document only, so the instruction and the
    question are kept.

    Args:
        model: provides the tokenizer and the window.
        build: builds the prompt from a document text.
        document: the full document.
        room: tokens reserved for the answer.

    Returns:
        The prompt and its length in tokens. The length is 0 when the window is unknown (a server without
        ``--window``); the document is then not truncated.
    """
    prompt = build(document)
    if model.window is None:
        return prompt, 0
    limit = model.window - room
    tokens = model.tokens(prompt)
    if tokens <= limit:
        return prompt, tokens
    ids = model.tokenizer(document, add_special_tokens=False)["input_ids"]
    keep = len(ids) - (tokens - limit)
    for _ in range(_TRIES):
        head = max(0, keep) // 2
        tail = max(0, keep) - head
        cut = model.tokenizer.decode(ids[:head]) + model.tokenizer.decode(ids[len(ids) - tail :])
        prompt = build(cut)
        tokens = model.tokens(prompt)
        if tokens <= limit or keep <= 0:
            break
        keep -= tokens - limit  # the joined text can encode to more tokens than its two parts
    return prompt, tokens
