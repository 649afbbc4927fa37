"""The built-in question set at 1, 2, 4 and 8 times the short length: needs no data, for trying things out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from solopo_nemo.embedded import generate_evaluation
from solopo_nemo.evaluation.accuracy import LENGTHS, is_correct
from solopo_nemo.evaluation.models import EvaluatedModel
from solopo_nemo.evaluation.settings import SuiteSettings
from solopo_nemo.evaluation.suites.suite import Suite, View
from solopo_nemo.evaluation.task import Cell, Label, Question

QUESTIONS, SHORT_PARAGRAPHS, SEED = 128, 8, 1
MAX_NEW_TOKENS = 64


def _score(response: str, row: Mapping[str, Any]) -> dict[str, float]:
    return {"accuracy": float(is_correct(response, row["answers"]))}


def _cells(model: EvaluatedModel, settings: SuiteSettings) -> Iterator[Cell]:
    for length in LENGTHS:
        rows = generate_evaluation(settings.limit or QUESTIONS, SEED, length * SHORT_PARAGRAPHS)
        questions = [Question(row["id"], row["prompt"][0]["content"], tuple(row["answers"])) for row in rows]
        tokens = max(len(question.prompt) for question in questions)  # of a byte-level tokenizer at most
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


def _views(labels: Mapping[str, list[Label]]) -> list[View]:
    return [*(View(f"{length}x", {"length": length}) for length in labels["length"]), View("average", each=("length",))]


SUITE = Suite(
    "builtin",
    "Built-in questions",
    "Share of questions answered exactly, by context length as a multiple of the short one; greedy.",
    _cells,
    _views,
    curve=("length", "set"),
)
