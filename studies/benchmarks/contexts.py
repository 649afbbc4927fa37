"""Measure building contexts: cached token counts against tokenizing every candidate prompt, and a whole build.

Both methods draw the same paragraphs by the same rule, on one core. The times are CPU times without the reading of the
source. The naive method is measured on the first questions only (`--naive-questions`), and also in a variant that ends
a context at the first paragraph that does not fit. `--build N` also runs the tool on N questions and on N/4 questions
(the questions of the source, repeated with new ids), and measures the time and the peak memory of all its processes.
The result is JSON with rates in questions per second.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from solopo_nemo.builders.contexts.compose import Composer, Dropped
from solopo_nemo.builders.contexts.counting import TokenCounter
from solopo_nemo.builders.contexts.pool import PATIENCE, ParagraphPool
from solopo_nemo.builders.contexts.prompt import render_prompt
from solopo_nemo.builders.contexts.question import Paragraph, Question
from solopo_nemo.builders.contexts.sources import read_pool, read_questions
from solopo_nemo.builders.contexts.sources.source import RowSource
from solopo_nemo.builders.contexts.targets import Targets
from solopo_nemo.data.tokenize import TripletEncoder
from solopo_nemo.data.tokenizer_files import load_tokenizer
from solopo_nemo.runtime.cli import ArgumentParser, run
from solopo_nemo.runtime.output import write_json_line
from studies.results import Results, machine

TOOL = Path(__file__).resolve().parents[2] / "tools" / "build_contexts.py"
_SECONDS_A_LOOK = 0.5
_MIB = 1 << 20


def main() -> None:
    """Run the command."""
    arguments = _arguments()
    # one core for both methods
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    encoder = TripletEncoder(load_tokenizer(arguments.tokenizer))
    questions = [item for item in read_questions(RowSource(arguments.source)) if isinstance(item, Question)]
    pool = ParagraphPool()
    for paragraph in read_pool(RowSource(arguments.pool)):
        pool.add(paragraph)
    targets = Targets.parse(arguments.short_tokens, arguments.long_tokens)
    about = {
        "questions": len(questions),
        "pool": len(pool),
        "short_tokens": targets.short.label,
        "long_tokens": [target.label for target in targets.long],
        "vocabulary": len(encoder.tokenizer),
        "machine": machine(),
        **_compare(questions, pool, encoder, targets, arguments.naive_questions),
    }
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    counts = (max(1, arguments.build // 4), arguments.build) if arguments.build else ()
    results = Results(arguments.out, about, [_build(arguments, count) for count in counts])
    if arguments.out:
        results.save()
    print(json.dumps({**about, "runs": results.runs}, indent=2))


def _compare(
    questions: list[Question], pool: ParagraphPool, encoder: TripletEncoder, targets: Targets, naive_questions: int
) -> dict[str, Any]:
    """Return the rates of both methods."""
    composer = Composer(pool, encoder, targets=targets, seed=0)
    rounds = []
    written = 0
    # the first round includes counting the pool's paragraphs
    for _ in range(2):
        started = time.process_time()
        written = sum(not isinstance(composer.compose(question), Dropped) for question in questions)
        rounds.append(len(questions) / (time.process_time() - started))
    cold, warm = rounds
    few = questions[:naive_questions]
    counter = TokenCounter(encoder)
    naive = {}
    for name, patience in (("same_rule", PATIENCE), ("first_misfit_ends", 1)):
        started = time.process_time()
        for question in few:
            _compose_naively(question, pool, counter, targets, patience)
        naive[name] = len(few) / (time.process_time() - started)
    return {
        "written": written,
        "counts": {"cold_per_second": round(cold, 2), "warm_per_second": round(warm, 2)},
        "naive": {"questions": len(few)} | {f"{name}_per_second": round(rate, 3) for name, rate in naive.items()},
        "speedup": {
            name: {"cold": round(cold / rate, 1), "warm": round(warm / rate, 1)} for name, rate in naive.items()
        },
    }


def _build(arguments: argparse.Namespace, count: int) -> dict[str, Any]:
    """Run the tool on ``count`` questions, and return its time and memory."""
    with TemporaryDirectory() as folder:
        source = Path(folder) / "questions.jsonl"
        with source.open("w", encoding="utf-8") as stream:
            for number, row in enumerate(islice(_over_and_over(arguments.source), count)):
                write_json_line(stream, row | {"id": f"question-{number}"})
        files = ["--source", source, "--pool", arguments.pool, "--tokenizer", arguments.tokenizer]
        targets = ["--short-tokens", arguments.short_tokens, "--long-tokens", arguments.long_tokens]
        options = ["--workers", arguments.workers, "--out", Path(folder) / "out.jsonl", "--json"]
        command = [sys.executable, TOOL, *files, *targets, *options]
        started = time.monotonic()
        with psutil.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True) as process:
            peak = 0
            while process.poll() is None:
                peak = max(peak, _memory(process))
                with suppress(psutil.TimeoutExpired):
                    process.wait(_SECONDS_A_LOOK)
            summary = json.loads(process.stdout.read().splitlines()[-1])
        return {
            **{name: summary[name] for name in ("in", "out", "dropped")},
            "workers": arguments.workers,
            "seconds": round(time.monotonic() - started, 1),
            "output_mib": round((Path(folder) / "out.jsonl").stat().st_size / _MIB),
            "peak_memory_mib": round(peak / _MIB),
        }


def _over_and_over(source: Path) -> Iterator[dict[str, Any]]:
    while True:
        for row in RowSource(source).rows():
            yield row.fields()


def _memory(process: psutil.Popen) -> int:
    """Return the bytes of a process and its children; shared memory counts once."""
    total = 0
    with suppress(psutil.NoSuchProcess):
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                total += one.memory_full_info().pss
    return total


def _compose_naively(
    question: Question, pool: ParagraphPool, counter: TokenCounter, targets: Targets, patience: int
) -> list[int]:
    """Fill the targets, with tokenization of the whole prompt for every candidate, and return the lengths."""
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
    parser = ArgumentParser(__doc__)
    option = parser.options()
    option("--source PATH", "questions, as build_contexts takes", type=Path, required=True)
    option("--pool FILE", "rows of title, paragraph_text", type=Path, required=True)
    option("--tokenizer FOLDER", "with a chat template", type=Path, required=True)
    option("--short-tokens N", "of the short prompt", "1100")
    option("--long-tokens N[,N]", "of the long prompts", "7500")
    option("--naive-questions N", "questions that the naive way is measured on", 10)
    build = "also run tools/build_contexts.py on N questions, and on a quarter of them (the goal: 20000 in 10 minutes)"
    option("--build N", build, type=int)
    option("--workers N", "processes of that run", 2)
    option("--out FILE", "also write the JSON here", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
