"""Answer accuracy of a model on the synthetic data, for each question."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from solopo_nemo.evaluation.models import EvaluatedModel, ModelSettings
from solopo_nemo.evaluation.run import evaluate
from solopo_nemo.evaluation.settings import SuiteSettings
from solopo_nemo.evaluation.suites.suite import Suite
from solopo_nemo.evaluation.task import Cell, Question
from studies.reproduction.world import SHORT_SENTENCES, draw_contexts, prompt_tokens

DEPTHS = 5
"""Number of equal parts of a context, for the accuracy by position of the fact."""
_ANSWER_TOKENS = 6
_EVALUATION_SEED = 1_000_000  # training questions have small seeds


@dataclass(frozen=True)
class Score:
    """Answers at one context length.

    Attributes:
        length: context length as a multiple of the short one.
        tokens: tokens of each prompt.
        questions: number of questions.
        right: one bit per question, 1 for an exact answer; hexadecimal, first question first.
        depths: right answers and questions for each part of the context, from the beginning.
    """

    length: int
    tokens: int
    questions: int
    right: str
    depths: list[list[int]]

    def outcomes(self) -> np.ndarray:
        """fp64 ``[questions]``: 1 for a right answer, else 0."""
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(self.right), dtype=np.uint8))
        return bits[: self.questions].astype(np.float64)

    def as_json(self) -> dict[str, Any]:
        """The score as plain JSON values."""
        return asdict(self)


def _exact(response: str, row: Mapping[str, Any]) -> dict[str, float]:
    return {"exact": float(response == row["answers"][0])}


def score_model(folder: Path, lengths: tuple[int, ...], questions: int, seed: int) -> list[Score]:
    """Score a model with greedy decoding and exact match.

    Args:
        folder: Hugging Face folder.
        lengths: context lengths as multiples of the short one; none scores nothing.
        questions: questions per length; the same for every model with this seed.
        seed: seed of the questions.
    """
    if not lengths:
        return []
    drawn = {
        length: draw_contexts(
            questions, length * SHORT_SENTENCES, torch.Generator().manual_seed(_EVALUATION_SEED + seed)
        )
        for length in lengths
    }

    def cells(model: EvaluatedModel, settings: SuiteSettings) -> Iterator[Cell]:
        for length, contexts in drawn.items():
            asked = enumerate(zip(contexts.prompts(), contexts.answers(), strict=True))
            yield Cell(
                name=f"{length}x",
                labels={"length": length},
                questions=[Question(f"{n:06}", prompt[0]["content"], (answer,)) for n, (prompt, answer) in asked],
                tokens=prompt_tokens(length),
                metric="exact",
                score=_exact,
                max_new_tokens=_ANSWER_TOKENS,
            )

    suite = Suite("miniature", "World in miniature", "Exact answers by context length.", cells, lambda labels: [])
    with TemporaryDirectory() as scratch:
        out = Path(scratch)
        found = evaluate(ModelSettings(str(folder)), [suite], SuiteSettings(out), out).suites[suite.name]
    scores = []
    for length, contexts in drawn.items():
        right = found[found["length"] == length].sort_values("id")["value"].to_numpy() == 1
        parts = contexts.asked_at.numpy() * DEPTHS // (length * SHORT_SENTENCES)
        scores.append(
            Score(
                length=length,
                tokens=prompt_tokens(length),
                questions=questions,
                right=np.packbits(right).tobytes().hex(),
                depths=[[int(right[parts == n].sum()), int((parts == n).sum())] for n in range(DEPTHS)],
            )
        )
    return scores
