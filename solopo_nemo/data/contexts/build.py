"""The whole run of building contexts: validate the source, compose, write."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from solopo_nemo.data.contexts.compose import Composer, Context, Dropped
from solopo_nemo.data.contexts.gold import gold_pair
from solopo_nemo.data.contexts.musique import read_musique, read_pool
from solopo_nemo.data.contexts.pool import ParagraphPool
from solopo_nemo.data.contexts.question import BadRow, Question
from solopo_nemo.data.lengths import Lengths, compression_rate
from solopo_nemo.data.output import atomic_text, write_json_line
from solopo_nemo.data.progress import with_progress
from solopo_nemo.data.tokenize import TripletEncoder
from solopo_nemo.errors import UserError


@dataclass(frozen=True)
class BuildSettings:
    """What to build.

    Attributes:
        source: Questions, MuSiQue's official schema.
        out: The file to write, JSON lines.
        short_tokens: Largest number of tokens of the short prompt.
        long_tokens: Largest number of tokens of the long prompt.
        pool: Distractor paragraphs; None takes those of the other questions.
        seed: Seed of all draws.
        limit: Use this many rows of the source; the rest still serves as pool.
        gold_pairs: Write whole triplets, with gold answers against wrong ones.
        allow_answer_leak: Allow distractors that hold the answer.
        skip_bad: Go on after bad rows, and write them to `<out>.rejects.jsonl`.
    """

    source: Path
    out: Path
    short_tokens: int
    long_tokens: int
    pool: Path | None = None
    seed: int = 0
    limit: int | None = None
    gold_pairs: bool = False
    allow_answer_leak: bool = False
    skip_bad: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.short_tokens < self.long_tokens:
            raise UserError(
                f"--short-tokens {self.short_tokens} and --long-tokens {self.long_tokens}: "
                "the short target must be positive and below the long one"
            )
        if self.limit is not None and self.limit < 1:
            raise UserError(f"--limit {self.limit}: must be at least 1")


def beside(out: Path, what: str) -> Path:
    """Return the path of a file that belongs to `out`, such as its rejects."""
    return out.with_name(f"{out.name}.{what}.jsonl")


def build_contexts(settings: BuildSettings, encoder: TripletEncoder) -> dict[str, Any]:
    """Build contexts, and write them with the rejected rows and the dropped questions beside them.

    The source is validated as a whole before anything is written; memory grows with the pool, not with the output.

    Returns:
        The summary: counts (`in` = `out` + `rejected` + `dropped`), token statistics, rho.

    Raises:
        UserError: Bad rows without `skip_bad`, bad pool rows, or nothing left to write.
    """
    started = time.monotonic()
    encoder.require_chat_template()
    rows, pool = _scan(settings)
    composer = Composer(
        pool, encoder, short_tokens=settings.short_tokens, long_tokens=settings.long_tokens, seed=settings.seed
    )
    lengths = {"short": Lengths(), "long": Lengths()}
    dropped: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    rejected = 0
    reason = "all rows are bad"
    with ExitStack() as files:
        # closed in reverse order: the result takes its name last
        out = files.enter_context(atomic_text(settings.out))
        side = {
            what: files.enter_context(atomic_text(beside(settings.out, what), keep_empty=False))
            for what in ("rejects", "dropped")
        }
        for question in with_progress(_questions(settings), "composing", rows):
            if isinstance(question, BadRow):
                rejected += 1
                write_json_line(side["rejects"], {"error": question.error, "row": question.value}, ascii_only=True)
                continue
            contexts = composer.compose(question)
            if isinstance(contexts, Dropped):
                dropped[contexts.rule] += 1
                reason = contexts.reason
                write_json_line(side["dropped"], {"id": question.id, "rule": contexts.rule, "reason": reason})
                continue
            row = _row(question, contexts, settings)
            for name, context in contexts.items():
                lengths[name].add(context.tokens)
            if settings.gold_pairs:
                kinds[row["meta"]["pair_kind"]] += 1
            write_json_line(out, row)
        written = rows - rejected - sum(dropped.values())
        if not written:
            raise UserError(
                f"{settings.source}: no context can be built: {reason}: change the targets or give a --pool"
            )
    return {
        "in": rows,
        "out": written,
        "rejected": rejected,
        "dropped": sum(dropped.values()),
        "dropped_by_rule": dict(sorted(dropped.items())),
        "pool": len(pool),
        "short_tokens": lengths["short"].statistics(),
        "long_tokens": lengths["long"].statistics(),
        "rho": compression_rate(lengths["short"], lengths["long"]),
        **({"pair_kinds": dict(sorted(kinds.items()))} if settings.gold_pairs else {}),
        "seconds": round(time.monotonic() - started, 1),
    }


def _scan(settings: BuildSettings) -> tuple[int, ParagraphPool]:
    """Validate the source and collect the pool; return the number of rows to use, and the pool."""
    pool = ParagraphPool(allow_answer_leak=settings.allow_answer_leak)
    rows = 0
    bad: list[str] = []
    for item in with_progress(read_musique(settings.source), "validating"):
        rows += 1
        if isinstance(item, BadRow):
            bad.append(item.error)
        elif settings.pool is None:
            for paragraph in (*item.supporting, *item.others):
                pool.add(paragraph, item.id)
    if bad and not settings.skip_bad:
        more = f" (and {len(bad) - 1} more bad rows)" if len(bad) > 1 else ""
        raise UserError(f"{bad[0]}{more}; --skip-bad goes on without and lists them")
    if not rows:
        raise UserError(f"{settings.source}: no questions in it: give a file with at least one row")
    if settings.pool is not None:
        for paragraph in with_progress(read_pool(settings.pool), "reading the pool"):
            pool.add(paragraph)
    return min(rows, settings.limit or rows), pool


def _questions(settings: BuildSettings) -> Iterator[Question | BadRow]:
    return islice(read_musique(settings.source), settings.limit)


def _row(question: Question, contexts: dict[str, Context], settings: BuildSettings) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": question.id,
        "question": question.question,
        "answers": list(question.answers),
        "prompt_short": contexts["short"].prompt,
        "prompt_long": contexts["long"].prompt,
    }
    meta: dict[str, Any] = {name + "_tokens": context.tokens for name, context in contexts.items()}
    if settings.gold_pairs:
        # a wrong answer that both contexts hold is better than one that only the long context does
        groups = [context.distractors for context in contexts.values()]
        pair = gold_pair(question, groups, Random(f"{settings.seed}:{question.id}:pair"))
        row |= {"chosen": pair.chosen, "rejected": pair.rejected}
        meta["pair_kind"] = pair.kind
    return row | {"meta": meta}
