"""A context build: validate the source, compose contexts in shards, assemble the outputs, report."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from random import Random
from typing import Any

from solopo_nemo.builders.contexts.compose import Composer, Context, Dropped, Pool
from solopo_nemo.builders.contexts.documents import DocumentPool
from solopo_nemo.builders.contexts.gold import gold_pair
from solopo_nemo.builders.contexts.pool import ParagraphPool
from solopo_nemo.builders.contexts.question import BadRow, Question, refuse_bad_rows
from solopo_nemo.builders.contexts.report import write_report
from solopo_nemo.builders.contexts.settings import DOCUMENT, BuildSettings
from solopo_nemo.builders.contexts.shards import ShardFolder
from solopo_nemo.builders.contexts.sources import read_passages, read_pool, read_questions
from solopo_nemo.builders.contexts.sources.source import RowSource
from solopo_nemo.builders.contexts.statistics import BuildStatistics, new_facts, note_contexts
from solopo_nemo.builders.contexts.targets import Targets
from solopo_nemo.data.normal_form import RULE
from solopo_nemo.data.tokenize import TripletEncoder
from solopo_nemo.runtime.errors import UserError, require
from solopo_nemo.runtime.isolated import run_tasks
from solopo_nemo.runtime.output import beside
from solopo_nemo.runtime.progress import with_progress

_Shard = tuple[int, list[Question | BadRow]]


def build_contexts(settings: BuildSettings, encoder: TripletEncoder) -> dict[str, Any]:
    """Build contexts, and write them together with the rejected rows and the dropped questions.

    1. Validate the whole source and collect the paragraph pool. Nothing is written before this step succeeds.
    2. Compose the contexts in shards, with `settings.workers` processes. Finished shards are kept in `<out>.work`, so
       an interrupted build resumes from them and writes the same bytes.
    3. Assemble the shards into the outputs, remove the work folder, and write the report.

    Memory: proportional to the pool, independent of the output.

    Args:
        settings: The settings of the build.
        encoder: Encoder with the tokenizer that counts the tokens.

    Returns:
        The summary: counts (`in` = `out` + `rejected` + `dropped`), token statistics, rho, evidence positions.

    Raises:
        UserError: A row is bad and `skip_bad` is off, a pool row is bad, or no context can be written.
    """
    started = time.monotonic()
    encoder.template.require("tokenizer")
    source = RowSource(settings.source, settings.subset, settings.split)
    pool_sources = [RowSource(name) for name in settings.pool]
    rows, pool = _scan(settings, source, pool_sources)
    composer = Composer(pool, encoder, targets=settings.targets, seed=settings.seed)
    _check_pool(composer, len(pool), settings.targets)
    shards = -(-rows // settings.shard_rows)
    folder = ShardFolder(settings.work)
    statistics = BuildStatistics(settings.out_files)
    with folder.opened(settings.plan(source, pool_sources, encoder.tokenizer)):
        missing = [number for number in range(shards) if not folder.is_finished(number)]
        work = _ShardWriter(composer, settings, folder)
        tasks = _tasks(settings, source, set(missing))
        workers = min(settings.workers, max(1, len(missing)))
        done = run_tasks(work, tasks, workers, name=lambda shard: f"composing shard {shard[0]}")
        for _ in with_progress(done, "composing", len(missing)):
            pass
        for facts in folder.facts(shards):
            statistics.add(facts)
        if statistics.written:
            for what in ("rejects", "dropped"):
                folder.assemble(shards, what, beside(settings.out, what), keep_empty=False)
            for label, out in settings.out_files.items():
                folder.assemble(shards, label, out)
        folder.remove()
    if not statistics.written:
        raise UserError(
            f"{settings.source}: no context can be built: {statistics.reason}: change the targets or give a --pool"
        )
    summary = statistics.summary() | {"pool": len(pool), "seconds": round(time.monotonic() - started, 1)}
    write_report(summary, statistics, settings)
    return summary


def _scan(settings: BuildSettings, source: RowSource, pool_sources: list[RowSource]) -> tuple[int, Pool]:
    """Validate the source and collect the pool; return the number of rows to use, and the pool."""
    pool = ParagraphPool(allow_answer_leak=settings.allow_answer_leak)
    rows = 0
    bad: list[str] = []
    for item in with_progress(read_questions(source, settings.schema), "validating"):
        rows += 1
        if isinstance(item, BadRow):
            bad.append(item.error)
        elif not pool_sources:
            for paragraph in (*item.supporting, *item.others):
                pool.add(paragraph, item.id)
    refuse_bad_rows(bad, settings.skip_bad)
    require(rows > 0, f"{settings.source}: no questions in it: give a file with at least one row")
    rows = min(rows, settings.limit or rows)
    if settings.long == DOCUMENT:
        passages = chain.from_iterable(map(read_passages, pool_sources))
        return rows, DocumentPool(
            with_progress(passages, "reading the documents"), allow_answer_leak=settings.allow_answer_leak
        )
    for paragraph in with_progress(chain.from_iterable(map(read_pool, pool_sources)), "reading the pool"):
        pool.add(paragraph)
    return rows, pool


def _check_pool(composer: Composer, paragraphs: int, targets: Targets) -> None:
    """Raise before composing if the pool is too small for the longest target."""
    tokens, longest = composer.count_pool(), targets.long[-1]
    # the evidence may be outside the pool; it fits into the short prompt, so short.high is an upper bound
    if tokens + targets.short.high < longest.low:
        raise UserError(
            f"--long-tokens {longest.label}: the {paragraphs} paragraphs to draw from have {tokens} tokens in all, too "
            "few for it: give a larger --pool (several files or datasets make one), or a lower target"
        )


def _tasks(settings: BuildSettings, source: RowSource, missing: set[int]) -> Iterator[_Shard]:
    """Yield the missing shards with their rows."""
    if not missing:
        return
    questions = islice(read_questions(source, settings.schema), settings.limit)
    number = 0
    while rows := list(islice(questions, settings.shard_rows)):
        if number in missing:
            yield number, rows
        number += 1


@dataclass(frozen=True)
class _ShardWriter:
    """Composes and writes shards. Each worker process has one instance."""

    composer: Composer
    settings: BuildSettings
    folder: ShardFolder

    def __call__(self, shard: _Shard) -> None:
        number, rows = shard
        facts = new_facts(self.settings.out_files)
        self.folder.write(number, self._compose(rows, facts), facts)

    def _compose(self, rows: list[Question | BadRow], facts: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        for question in rows:
            if isinstance(question, BadRow):
                facts["rejected"] += 1
                yield "rejects", {"error": question.error, "row": question.value}
                continue
            contexts = self.composer.compose(question)
            if isinstance(contexts, Dropped):
                facts["dropped"][contexts.rule] += 1
                facts["reason"] = contexts.reason
                yield "dropped", {"id": question.id, "rule": contexts.rule, "reason": contexts.reason}
                continue
            note_contexts(facts, contexts)
            for label, long in contexts.long.items():
                yield label, self._row(question, contexts.short, long, facts)

    def _row(self, question: Question, short: Context, long: Context, facts: dict[str, Any]) -> dict[str, Any]:
        row: dict[str, Any] = {
            "id": question.id,
            "question": question.question,
            "answers": list(question.answers),
            "prompt_short": short.prompt,
            "prompt_long": long.prompt,
        }
        meta: dict[str, Any] = {"short_tokens": short.tokens, "long_tokens": long.tokens}
        if any(target.varies for _, target in self.settings.targets.named()):
            meta |= {"short_target": short.target, "long_target": long.target}
        if self.settings.gold_pairs:
            # prefer an incorrect answer that both contexts contain to one that only the long context contains
            groups = [short.distractors, long.distractors]
            pair = gold_pair(question, groups, Random(f"{self.settings.seed}:{question.id}:pair"))
            row |= {"chosen": pair.chosen, "rejected": pair.rejected}
            meta |= {"pair_kind": pair.kind, "answer_rule": str(RULE)}
            facts["pair_kinds"][pair.kind] += 1
        return row | {"meta": meta}
