"""Documents that are longer than the model takes: cut in the middle, as LongBench's own code does."""

from __future__ import annotations

from collections.abc import Callable

from solopo_nemo.evaluation.models import EvaluatedModel

_TRIES = 8


def fitted(model: EvaluatedModel, build: Callable[[str], str], document: str, room: int) -> tuple[str, int]:
    """A prompt around a document, of which the middle is left out where the window has no place for it.

    LongBench cuts the whole prompt; here the instruction and the question stay whatever their length.

    Args:
        model: gives tokenizer and window.
        build: makes the prompt of the document or of what is left of it.
        document: the text.
        room: tokens of the answer.

    Returns:
        The prompt, and its tokens (0 where no tokenizer is at hand: a server without ``--tokenizer``).
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
        keep -= tokens - limit  # the seam, or text that is encoded differently again
    return prompt, tokens
