"""Prompts of given lengths, built with the project's context builder."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from solopo_nemo.builders.contexts.compose import Composer, Context, Dropped
from solopo_nemo.builders.contexts.pool import ParagraphPool
from solopo_nemo.builders.contexts.question import BadRow, Question, refuse_bad_rows
from solopo_nemo.builders.contexts.sources import read_pool, read_questions
from solopo_nemo.builders.contexts.sources.source import RowSource
from solopo_nemo.builders.contexts.targets import Target, Targets
from solopo_nemo.evaluation.models import EvaluatedModel
from solopo_nemo.evaluation.settings import SuiteSettings
from solopo_nemo.evaluation.sources import KINDS, find_source, name_bad
from solopo_nemo.runtime.errors import UserError, require
from solopo_nemo.runtime.progress import with_progress

logger = logging.getLogger("solopo_nemo")

SOURCES = {
    "squad": ("rajpurkar/squad", None),
    "hotpotqa": ("hotpotqa/hotpot_qa", "distractor"),
    "musique": ("dgslibisey/MuSiQue", None),
}
"""Datasets of RULER's question answering: name and configuration on the Hugging Face hub."""
FOLDER = "ruler_qa"


@dataclass(frozen=True)
class Asked:
    """A question and its contexts, keyed by length in tokens. Each context contains the next shorter one."""

    question: Question
    contexts: dict[int, Context]


def asked_questions(
    model: EvaluatedModel, settings: SuiteSettings, dataset: str, count: int, room: int, suite: str
) -> list[Asked]:
    """The first ``count`` questions of a dataset for which a context of every length can be built.

    A context contains all evidence of its question and unrelated paragraphs, up to the length minus ``room`` tokens.
    The unrelated paragraphs come from other questions of the dataset and from ``ruler_qa/pool.jsonl`` if present.

    Args:
        model: provides the tokenizer and the window.
        settings: data folder and lengths.
        dataset: key of :data:`SOURCES`.
        count: maximum number of questions.
        room: tokens reserved for the answer.
        suite: suite name, for messages.

    Raises:
        UserError: data are missing or invalid, or a length exceeds the available paragraphs or the window.
    """
    if settings.lengths[0] <= room:
        raise UserError(f"--lengths {settings.lengths[0]}: {suite} needs room for an answer of {room} tokens and more")
    model.require_window(settings.lengths[-1], f"{suite}: --lengths")
    encoder = model.encoder
    encoder.template.require("tokenizer")
    source = find_source(settings.data, FOLDER, dataset, *SOURCES[dataset], "validation")
    pool, questions = _read(source, settings, dataset)
    targets = [Target(str(length - room), length - room, length - room) for length in settings.lengths]
    composer = Composer(pool, encoder, targets=Targets(targets[0], tuple(targets[1:])), seed=0)
    have = composer.count_pool()
    if have + targets[0].low < targets[-1].low:
        raise UserError(
            f"{suite}: --lengths {settings.lengths[-1]}: {source.name} has paragraphs of {have} tokens in all: leave "
            f"that length out, or put more paragraphs into {settings.data / FOLDER / 'pool.jsonl'}"
        )
    composed = islice(_composed(composer, questions, settings.lengths, dataset), count)
    asked = list(with_progress(composed, f"{suite}: {dataset}", min(count, len(questions))))
    require(bool(asked), f"{suite}: {source.name}: no question has a context at all of the lengths {settings.lengths}")
    return asked


def _read(source: RowSource, settings: SuiteSettings, dataset: str) -> tuple[ParagraphPool, list[Question]]:
    pool, questions, bad = ParagraphPool(), [], []
    for item in with_progress(read_questions(source), f"reading {dataset}"):
        if isinstance(item, BadRow):
            bad.append(item.error)
            refuse_bad_rows(bad, settings.skip_bad)
            continue
        questions.append(item)
        for paragraph in (*item.supporting, *item.others):
            pool.add(paragraph, item.id)
    name_bad(bad, dataset)
    for kind in KINDS:
        path = settings.data / FOLDER / f"pool{kind}"
        if path.is_file():
            for paragraph in read_pool(RowSource(path)):
                pool.add(paragraph)
    return pool, questions


def _composed(composer: Composer, questions: list[Question], lengths: tuple[int, ...], dataset: str) -> Iterator[Asked]:
    dropped: Counter[str] = Counter()
    for question in questions:
        made = composer.compose(question)
        if isinstance(made, Dropped):
            dropped[made.rule] += 1
        else:
            yield Asked(question, dict(zip(lengths, (made.short, *made.long.values()), strict=True)))
    if dropped:
        rules = ", ".join(f"{count} {rule}" for rule, count in dropped.items())
        logger.warning("%s: questions without a context at every length are left out: %s", dataset, rules)
