"""LongBench v2: multiple choice with single-stage chain of thought at temperature 0.1 (paper, Table 4, Appendix E)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from solopo_nemo.data.answers import without_thoughts
from solopo_nemo.data.fields import bad_field, required_text
from solopo_nemo.data.json_rows import Row
from solopo_nemo.evaluation.documents import fitted
from solopo_nemo.evaluation.models import EvaluatedModel
from solopo_nemo.evaluation.settings import SuiteSettings
from solopo_nemo.evaluation.sources import find_source, parsed
from solopo_nemo.evaluation.suites.suite import Suite, View
from solopo_nemo.evaluation.task import Cell, Label, Question

MAX_NEW_TOKENS = 1024
TEMPERATURE = 0.1
DIFFICULTIES = ("easy", "hard")
BANDS = ("short", "medium", "long")
"""Length classes of the benchmark: below 32K words, 32K to 128K words, and above 128K words."""

_PROMPT = """Please read the following text and answer the question below.

<text>
{document}
</text>

What is the correct answer to this question: {question}
Choices:
(A) {A}
(B) {B}
(C) {C}
(D) {D}

Let's think step by step. At the end, give your answer in this format: "The correct answer is (insert answer here)"."""
# the answer patterns of the benchmark's own code
_STATED = (re.compile(r"The correct answer is \(([A-D])\)"), re.compile(r"The correct answer is ([A-D])"))


def stated_choice(response: str) -> str | None:
    """The letter that a response states after its thoughts, by LongBench v2's rule; None if there is none."""
    plain = without_thoughts(response).replace("*", "")
    for pattern in _STATED:
        if found := pattern.search(plain):
            return found.group(1)
    return None


def _score(response: str, row: Mapping[str, Any]) -> dict[str, float]:
    choice = stated_choice(response)
    return {"accuracy": float(choice in row["answers"]), "answered": float(choice is not None)}


def _cells(model: EvaluatedModel, settings: SuiteSettings) -> Iterator[Cell]:
    room = settings.max_new_tokens or MAX_NEW_TOKENS
    source = find_source(settings.data, "longbench_v2", "data", "THUDM/LongBench-v2", None, "train")
    made = parsed(source, partial(_question, model=model, room=room), settings, "longbench_v2")
    for seed in settings.seeds:
        yield Cell(
            name=f"seed-{seed}",
            labels={"seed": seed},
            **made,
            metric="accuracy",
            score=_score,
            max_new_tokens=room,
            temperature=TEMPERATURE,
            seed=seed,
        )


def _question(row: Row, number: int, *, model: EvaluatedModel, room: int) -> tuple[Question, int]:
    fields, where = row.fields(), row.where

    def field(name: str) -> str:
        return required_text(fields, name, where).strip()

    def one_of(name: str, values: tuple[str, ...]) -> str:
        if (value := field(name)) not in values:
            raise bad_field(where, name, f"is {value!r}, must be one of {', '.join(values)}")
        return value

    choices = {letter: field(f"choice_{letter}") for letter in "ABCD"}
    question = field("question")
    prompt, tokens = fitted(
        model, lambda document: _PROMPT.format(document=document, question=question, **choices), field("context"), room
    )
    answer = one_of("answer", tuple("ABCD"))
    labels = {"difficulty": one_of("difficulty", DIFFICULTIES), "band": one_of("length", BANDS)}
    return Question(field("_id"), prompt, (answer,), labels), tokens


def _views(labels: Mapping[str, list[Label]]) -> list[View]:
    views = [View("overall")]
    views += [View(name, {"difficulty": name}) for name in DIFFICULTIES if name in labels["difficulty"]]
    return views + [View(f"{name} texts", {"band": name}) for name in BANDS if name in labels["band"]]


SUITE = Suite(
    "longbench_v2",
    "LongBench v2",
    "Accuracy; chain of thought in one stage at temperature 0.1, mean of several seeds, texts longer than the window "
    "cut in the middle.",
    _cells,
    _views,
    headline="overall",
)
