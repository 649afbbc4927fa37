"""Needle in a haystack by depth and length (paper, Figure 9).

NIAH-Plus has a single-document and a multi-document setting. This suite builds both from RULER's sources: one document
of SQuAD paragraphs, and separate HotpotQA passages. The needle is all evidence of a question, placed at one depth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from solopo_nemo.builders.contexts.prompt import passage_body, render_document, render_prompt
from solopo_nemo.evaluation.models import EvaluatedModel
from solopo_nemo.evaluation.settings import SuiteSettings
from solopo_nemo.evaluation.suites.built_contexts import Asked, asked_questions
from solopo_nemo.evaluation.suites.suite import Suite, View
from solopo_nemo.evaluation.task import Cell, Label, Question, scoring
from solopo_nemo.runtime.units import short_count

QUESTIONS = 20
MAX_NEW_TOKENS = 512
SETTINGS = {"single document": "squad", "several documents": "hotpotqa"}


def _cells(model: EvaluatedModel, settings: SuiteSettings) -> Iterator[Cell]:
    room = settings.max_new_tokens or MAX_NEW_TOKENS
    for setting, dataset in SETTINGS.items():
        asked = asked_questions(model, settings, dataset, settings.limit or QUESTIONS, room, "niah_plus")
        for length in settings.lengths:
            for depth in settings.depths:
                yield Cell(
                    name=f"{setting.split()[0]}-{length}-{depth}",
                    labels={"setting": setting, "length": length, "depth": depth},
                    questions=[
                        Question(one.question.id, _prompt(one, length, depth, setting), one.question.answers)
                        for one in asked
                    ],
                    tokens=length - room,
                    metric="sub_em",
                    **scoring(settings),
                    max_new_tokens=room,
                )


def _prompt(asked: Asked, length: int, depth: int, setting: str) -> str:
    """The prompt with all evidence placed after ``depth`` percent of the unrelated text."""
    others = asked.contexts[length].distractors
    sizes = [len(passage_body(paragraph)) for paragraph in others]
    before, passed = 0, 0
    while before < len(others) and (passed + sizes[before] / 2) * 100 <= depth * sum(sizes):
        passed += sizes[before]
        before += 1
    order = [*others[:before], *asked.question.supporting, *others[before:]]
    if setting == "single document":
        return render_document(asked.question.question, "".join(map(passage_body, order)))
    return render_prompt(asked.question.question, order)[0]["content"]


def _views(labels: Mapping[str, list[Label]]) -> list[View]:
    views = [
        View(f"{setting}, {short_count(int(length))}", {"setting": setting, "length": length}, ("depth",))
        for setting in labels["setting"]
        for length in labels["length"]
    ]
    views += [View(f"{setting}, all", {"setting": setting}, ("depth", "length")) for setting in labels["setting"]]
    return [*views, View("average", each=("setting", "depth", "length"))]


SUITE = Suite(
    "niah_plus",
    "Needles in haystacks",
    "Share of questions whose stated answer holds a gold answer as whole words (sub-EM); greedy, evidence together at "
    "each depth.",
    _cells,
    _views,
    curve=("length", "setting"),
    heat=("length", "depth", "setting"),
)
