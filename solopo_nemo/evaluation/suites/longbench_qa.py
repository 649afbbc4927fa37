"""LongBench's English question answering with the project's prompt (paper, Tables 3 and 7)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from solopo_nemo.builders.contexts.prompt import render_document
from solopo_nemo.data.fields import has, required_list, required_text
from solopo_nemo.data.json_rows import Row
from solopo_nemo.evaluation.documents import fitted
from solopo_nemo.evaluation.models import EvaluatedModel
from solopo_nemo.evaluation.settings import SuiteSettings
from solopo_nemo.evaluation.sources import find_source, parsed
from solopo_nemo.evaluation.suites.suite import Suite, View
from solopo_nemo.evaluation.task import Cell, Label, Question, scoring

MAX_NEW_TOKENS = 512
HUB = "Xnhyacinth/LongBench"
DATASETS = {
    "narrativeqa": "single",
    "qasper": "single",
    "multifieldqa_en": "single",
    "hotpotqa": "multi",
    "2wikimqa": "multi",
    "musique": "multi",
}


def _cells(model: EvaluatedModel, settings: SuiteSettings) -> Iterator[Cell]:
    room = settings.max_new_tokens or MAX_NEW_TOKENS
    for dataset, documents in DATASETS.items():
        source = find_source(settings.data, "longbench_qa", dataset, HUB, dataset, "test")
        parse = partial(_question, model=model, room=room)
        yield Cell(
            name=dataset,
            labels={"dataset": dataset, "documents": documents},
            **parsed(source, parse, settings, f"longbench_qa: {dataset}"),
            metric="f1",
            **scoring(settings),
            max_new_tokens=room,
        )


def _question(row: Row, number: int, *, model: EvaluatedModel, room: int) -> tuple[Question, int]:
    fields, where = row.fields(), row.where
    # the field is `input` in LongBench's own files and `question` in the hub copy that lm_eval loads
    field = "input" if has(fields, "input") else "question"
    question, answers = required_text(fields, field, where).strip(), required_list(fields, "answers", where)
    context = required_text(fields, "context", where)
    prompt, tokens = fitted(model, lambda document: render_document(question, document), context, room)
    return Question(str(fields.get("_id") or number), prompt, answers), tokens


def _views(labels: Mapping[str, list[Label]]) -> list[View]:
    views = [View(str(dataset), {"dataset": dataset}) for dataset in labels["dataset"]]
    views += [View(f"{kind}-document", {"documents": kind}, ("dataset",)) for kind in ("single", "multi")]
    return [*views, View("average", each=("dataset",))]


SUITE = Suite(
    "longbench_qa",
    "LongBench question answering",
    "F1 of the stated answer; greedy, documents longer than the window cut in the middle. Averages count datasets "
    "alike.",
    _cells,
    _views,
)
