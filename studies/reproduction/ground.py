"""What methods are compared on: contexts to train on, and questions to answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studies.reproduction.scoring import Score, score_model
from studies.reproduction.world import RESPONSE_TOKENS, SHORT_SENTENCES, prompt_tokens, training_questions


@dataclass(frozen=True)
class Ground:
    """Contexts and questions of one kind.

    Attributes:
        contexts: number, seed and length of the long prompt -> rows of a contexts file.
        prompt_tokens: length -> tokens of a prompt.
        response_tokens: tokens of a right answer.
        new_tokens: limit of the tokens of a sampled answer.
        score: model folder, lengths, questions a length and seed -> one score a length.

    Lengths are multiples of the short prompt.
    """

    contexts: Callable[[int, int, int], Iterable[dict[str, Any]]]
    prompt_tokens: Callable[[int], int]
    response_tokens: int
    new_tokens: int
    score: Callable[[Path, tuple[int, ...], int, int], list[Score]]


def _contexts(count: int, seed: int, long: int) -> Iterable[dict[str, Any]]:
    return training_questions(count, seed, SHORT_SENTENCES, long * SHORT_SENTENCES)


MINIATURE = Ground(_contexts, prompt_tokens, RESPONSE_TOKENS, 6, score_model)
"""The synthetic data of :mod:`studies.reproduction.world`."""
