"""Measure building contexts: composing by cached counts against tokenizing every candidate prompt anew.

Both ways draw the same paragraphs and follow the same rule, on one core and timed by it, so that other work on the
machine does not count; reading the source is no part of either. The naive way is measured on the first questions only
(`--naive-questions`), and also in a variant that ends a context at the first paragraph that does not fit. The result
is JSON, rates in questions per second.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from itertools import chain
from pathlib import Path
from random import Random

from solopo_nemo.cli import run
from solopo_nemo.data.contexts.compose import PATIENCE, Composer, Dropped
from solopo_nemo.data.contexts.counting import TokenCounter
from solopo_nemo.data.contexts.pool import ParagraphPool
from solopo_nemo.data.contexts.prompt import render_prompt
from solopo_nemo.data.contexts.question import Paragraph, Question
from solopo_nemo.data.contexts.sources import read_pool, read_questions
from solopo_nemo.data.contexts.sources.source import RowSource
from solopo_nemo.data.contexts.targets import Targets
from solopo_nemo.data.tokenize import TripletEncoder, load_tokenizer


def main() -> None:
    """Run the command."""
    arguments = _arguments()
    # one core for both ways
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    encoder = TripletEncoder(load_tokenizer(arguments.tokenizer))
    questions = [question for question in read_questions(RowSource(arguments.source)) if isinstance(question, Question)]
    pool = ParagraphPool()
    for paragraph in read_pool(RowSource(arguments.pool)):
        pool.add(paragraph)
    targets = Targets.parse(arguments.short_tokens, arguments.long_tokens)

    composer = Composer(pool, encoder, targets=targets, seed=0)
    rounds = []
    written = 0
    # the first round also counts the pool's paragraphs, as the first questions of a large source do
    for _ in range(2):
        started = time.process_time()
        written = sum(not isinstance(composer.compose(question), Dropped) for question in questions)
        rounds.append(len(questions) / (time.process_time() - started))
    few = questions[: arguments.naive_questions]
    counter = TokenCounter(encoder)
    naive = {}
    for name, patience in (("same_rule", PATIENCE), ("first_misfit_ends", 1)):
        started = time.process_time()
        for question in few:
            _compose_naively(question, pool, counter, targets, patience)
        naive[name] = len(few) / (time.process_time() - started)
    cold, warm = rounds
    result = {
        "questions": len(questions),
        "written": written,
        "pool": len(pool),
        "short_tokens": targets.short.label,
        "long_tokens": [target.label for target in targets.long],
        "vocabulary": len(encoder.tokenizer),
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
        "counts": {"cold_per_second": round(cold, 2), "warm_per_second": round(warm, 2)},
        "naive": {"questions": len(few)} | {f"{name}_per_second": round(rate, 3) for name, rate in naive.items()},
        "speedup": {
            name: {"cold": round(cold / rate, 1), "warm": round(warm / rate, 1)} for name, rate in naive.items()
        },
    }
    text = json.dumps(result, indent=2)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n", encoding="utf-8")
    print(text)


def _compose_naively(
    question: Question, pool: ParagraphPool, counter: TokenCounter, targets: Targets, patience: int
) -> list[int]:
    """Fill the targets one after the other, tokenizing the whole prompt for every candidate; return the lengths."""
    drawn = pool.draw(question, Random(f"0:{question.id}"))
    paragraphs = list(question.supporting)
    lengths: list[int] = []
    passed: list[Paragraph] = []
    for _, target in targets.named():
        again, passed, misfits = iter(passed), [], 0
        tokens = counter.prompt(render_prompt(question.question, paragraphs), "benchmark")
        for candidate in chain(again, drawn):
            longer = counter.prompt(render_prompt(question.question, [*paragraphs, candidate]), "benchmark")
            if longer <= target.high:
                paragraphs.append(candidate)
                tokens = longer
                continue
            passed.append(candidate)
            misfits += 1
            if misfits >= patience:
                break
        passed += again
        lengths.append(tokens)
    return lengths


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, metavar="PATH", help="questions, as build_contexts takes")
    parser.add_argument("--pool", type=Path, required=True, metavar="FILE", help="rows of title, paragraph_text")
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="FOLDER", help="with a chat template")
    parser.add_argument("--short-tokens", default="1100", metavar="N", help="default 1100")
    parser.add_argument("--long-tokens", default="7500", metavar="N[,N]", help="default 7500")
    parser.add_argument("--naive-questions", type=int, default=10, metavar="N", help="default 10")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the JSON here")
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
