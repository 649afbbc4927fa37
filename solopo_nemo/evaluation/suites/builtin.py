"""The built-in questions by context length. They need no data files; training runs report them before and after."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from solopo_nemo.data.answers import stated_answer
from solopo_nemo.data.normal_form import normalize
from solopo_nemo.embedded import SHORT_PARAGRAPHS, generate_evaluation
from solopo_nemo.embedded.world import MAX_PARAGRAPHS
from solopo_nemo.evaluation.models import EvaluatedModel
from solopo_nemo.evaluation.settings import SuiteSettings
from solopo_nemo.evaluation.suites.suite import Suite, View
from solopo_nemo.evaluation.task import Cell, Label, Question

QUESTIONS, SEED = 128, 1
LENGTHS = (1, 2, 4, 8)
LONGEST = MAX_PARAGRAPHS // SHORT_PARAGRAPHS
"""The largest multiple of the short length."""
MAX_NEW_TOKENS = 64


def is_correct(text: str, answers: Iterable[str]) -> bool:
    """True if the answer stated after the prefix in `text` equals one of `answers` after normalization."""
    stated = stated_answer(text)
    return stated.prefixed and normalize(stated.text) in {normalize(answer) for answer in answers}


def _score(response: str, row: Mapping[str, Any]) -> dict[str, float]:
    return {"accuracy": float(is_correct(response, row["answers"]))}


def _views(labels: Mapping[str, list[Label]]) -> list[View]:
    return [*(View(f"{length}x", {"length": length}) for length in labels["length"]), View("average", each=("length",))]


def builtin_suite(lengths: Sequence[int] = LENGTHS, seed: int = SEED) -> Suite:
    """The suite of built-in questions.

    Args:
        lengths: context lengths as multiples of the short one; those of the settings replace them where each is one
            (1 to :data:`LONGEST`).
        seed: seed of the questions. They share no fact with any training question.
    """

    def cells(model: EvaluatedModel, settings: SuiteSettings) -> Iterator[Cell]:
        for length in lengths if settings.lengths[-1] > LONGEST else settings.lengths:
            rows = generate_evaluation(settings.limit or QUESTIONS, seed, length * SHORT_PARAGRAPHS)
            questions = [Question(row["id"], row["prompt"][0]["content"], tuple(row["answers"])) for row in rows]
            tokens = max(len(question.prompt) for question in questions)  # characters: an upper bound
            if not model.remote:
                tokens = max(model.tokens(question.prompt) for question in questions)
                model.require_window(tokens + MAX_NEW_TOKENS, f"builtin at {length}x")
            yield Cell(
                name=f"{length}x",
                labels={"set": "built-in", "length": length},
                questions=questions,
                tokens=tokens,
                metric="accuracy",
                score=_score,
                max_new_tokens=settings.max_new_tokens or MAX_NEW_TOKENS,
            )

    return Suite(
        "builtin",
        "Built-in questions",
        "Share of questions answered exactly, by context length as a multiple of the short one; greedy.",
        cells,
        _views,
        curve=("length", "set"),
    )


SUITE = builtin_suite()
