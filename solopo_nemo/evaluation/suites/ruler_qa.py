"""RULER's question answering on SQuAD, HotpotQA and MuSiQue at given lengths, with the project's prompt (Table 8)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from solopo_nemo.evaluation.models import EvaluatedModel
from solopo_nemo.evaluation.settings import SuiteSettings
from solopo_nemo.evaluation.suites.built_contexts import SOURCES, asked_questions
from solopo_nemo.evaluation.suites.suite import Suite, View
from solopo_nemo.evaluation.task import Cell, Label, Question, scoring
from solopo_nemo.runtime.units import short_count

QUESTIONS = 200
MAX_NEW_TOKENS = 512


def _cells(model: EvaluatedModel, settings: SuiteSettings) -> Iterator[Cell]:
    room = settings.max_new_tokens or MAX_NEW_TOKENS
    for dataset in SOURCES:
        asked = asked_questions(model, settings, dataset, settings.limit or QUESTIONS, room, "ruler_qa")
        for length in settings.lengths:
            yield Cell(
                name=f"{dataset}-{length}",
                labels={"dataset": dataset, "length": length},
                questions=[
                    Question(one.question.id, one.contexts[length].prompt[0]["content"], one.question.answers)
                    for one in asked
                ],
                tokens=length - room,
                metric="f1",
                **scoring(settings),
                max_new_tokens=room,
            )


def _views(labels: Mapping[str, list[Label]]) -> list[View]:
    lengths, datasets = labels["length"], labels["dataset"]
    views = [View(f"{d}, {short_count(int(n))}", {"dataset": d, "length": n}) for d in datasets for n in lengths]
    views += [View(f"all, {short_count(int(n))}", {"length": n}, ("dataset",)) for n in lengths]
    return [*views, View("average", each=("dataset", "length"))]


SUITE = Suite(
    "ruler_qa",
    "RULER question answering",
    "F1 of the stated answer; greedy, prompts of the context builder filled to the length, evidence at random places.",
    _cells,
    _views,
    curve=("length", "dataset"),
)
