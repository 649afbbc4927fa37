"""Answer accuracy of a model on the world in miniature, question by question."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from solopo_nemo.evaluation.accuracy import GreedyAnswerer
from studies.reproduction.world import SHORT_SENTENCES, draw_contexts

DEPTHS = 5
"""Equal parts of a context, by where in it the fact that is asked for stands."""
_TOKENS_A_BATCH = 16384
_ANSWER_TOKENS = 6
_EVALUATION_SEED = 1_000_000  # far from those of training questions


@dataclass(frozen=True)
class Score:
    """Answers at one context length.

    Attributes:
        length: context length as a multiple of the short one.
        tokens: of each prompt.
        questions: asked.
        right: one bit a question, set where the answer is exactly right; hexadecimal, first question first.
        depths: right answers and questions by depth of the fact in the context, nearest to the beginning first.
    """

    length: int
    tokens: int
    questions: int
    right: str
    depths: list[list[int]]

    def outcomes(self) -> np.ndarray:
        """1 or 0 a question, fp64 ``[questions]``."""
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(self.right), dtype=np.uint8))
        return bits[: self.questions].astype(np.float64)

    def as_json(self) -> dict[str, Any]:
        """The score as plain JSON values."""
        return asdict(self)


def score_model(folder: Path, lengths: tuple[int, ...], questions: int, seed: int) -> list[Score]:
    """Ask a model by greedy decoding; only the exact answer counts.

    Args:
        folder: Hugging Face folder.
        lengths: context lengths as multiples of the short one.
        questions: a length, the same for every model asked with this seed.
        seed: of the questions.
    """
    answerer = GreedyAnswerer(folder, max_new_tokens=_ANSWER_TOKENS)
    scores = []
    for length in lengths:
        sentences = length * SHORT_SENTENCES
        generator = torch.Generator().manual_seed(_EVALUATION_SEED + seed)
        contexts = draw_contexts(questions, sentences, generator)
        prompts, answers = contexts.prompts(), contexts.answers()
        tokens = len(answerer.encode(prompts[:1])[0])
        batch = max(1, _TOKENS_A_BATCH // tokens)
        texts = [text for at in range(0, questions, batch) for text in answerer(prompts[at : at + batch])]
        right = np.array([text == answer for text, answer in zip(texts, answers, strict=True)])
        parts = contexts.asked_at.numpy() * DEPTHS // sentences
        scores.append(
            Score(
                length=length,
                tokens=tokens,
                questions=questions,
                right=np.packbits(right).tobytes().hex(),
                depths=[[int(right[parts == n].sum()), int((parts == n).sum())] for n in range(DEPTHS)],
            )
        )
    return scores
