"""Build RULER-style short and long contexts from questions: all evidence, and random unrelated paragraphs.

Both prompts of a question hold every supporting paragraph; distractors are added until the prompt, template and
question included, is within one paragraph of its token target and never above it. The short context is nested in
the long one. The same seed gives the same bytes with any number of workers; a run that was stopped goes on where it
was when the same command is given again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from solopo_nemo.builders.contexts.build import build_contexts
from solopo_nemo.builders.contexts.settings import BuildSettings
from solopo_nemo.builders.contexts.sources import FORMATS
from solopo_nemo.data.tokenize import TripletEncoder, load_tokenizer
from solopo_nemo.runtime.cli import ArgumentParser, run


def main() -> None:
    """Run the command."""
    arguments = vars(_parser().parse_args())
    folder, as_json, pairs, schema = (arguments.pop(name) for name in ("tokenizer", "json", "pairs", "format"))
    pool = tuple(arguments.pop("pool"))
    settings = BuildSettings(**arguments, pool=pool, schema=schema, gold_pairs=pairs == "gold")
    summary = build_contexts(settings, TripletEncoder(load_tokenizer(folder)))
    _report(summary)
    if as_json:
        print(json.dumps(summary))


def _parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    needed = parser.add_argument_group("needed")
    source = (
        "questions as MuSiQue, HotpotQA, 2WikiMultihopQA or SQuAD have them, or rows of question, answers, "
        "supporting[] and distractors[]: .jsonl, .json (both also .gz), .parquet, a saved dataset's folder, or what "
        "`datasets` loads by its name, such as a dataset on the Hugging Face hub"
    )
    needed.add_argument("--source", required=True, metavar="PATH|NAME", help=source)
    tokenizer = "local Hugging Face folder of the model to train; it needs a chat template"
    needed.add_argument("--tokenizer", type=Path, required=True, metavar="FOLDER", help=tokenizer)
    short = "token target of the short prompt: 1100, a range 800-1400, or a file with one length a line to draw from"
    needed.add_argument("--short-tokens", required=True, metavar="N", help=short)
    long = (
        "the same of the long prompt, e.g. 7500; several as 4096,8192,16384 give one output each, NAME.4096.jsonl, "
        "all of the same questions: one that fails at one length is in none"
    )
    needed.add_argument("--long-tokens", required=True, metavar="N[,N]", help=long)
    out = "JSON lines to write; FILE.report.json has the figures, FILE.dropped.jsonl the questions a rule left out"
    needed.add_argument("--out", type=Path, required=True, metavar="FILE", help=out)

    chosen = parser.add_argument_group("choices")
    schema = "schema of the source (default: recognised by its first row)"
    chosen.add_argument("--format", choices=FORMATS, help=schema)
    chosen.add_argument("--subset", metavar="NAME", help="subset (configuration) of a dataset that has several")
    chosen.add_argument("--split", metavar="NAME", help="split of a dataset that has several")
    pool = (
        "draw distractors from these files or datasets and not from the other questions: rows of title and "
        "paragraph_text, or of text, or questions as --source takes them"
    )
    chosen.add_argument("--pool", nargs="+", default=(), metavar="PATH", help=pool)
    pairs = "gold: also write chosen (gold answer) and rejected (wrong answer of the same kind), without sampling"
    chosen.add_argument("--pairs", choices=["none", "gold"], default="none", help=pairs)
    chosen.add_argument("--seed", type=int, default=0, metavar="N", help="seed of all draws (default 0)")
    limit = "use the first N rows only; the others still serve as distractors"
    chosen.add_argument("--limit", type=int, metavar="N", help=limit)
    leak = "allow distractors that hold the answer or an alias"
    chosen.add_argument("--allow-answer-leak", action="store_true", help=leak)
    skip = "go on after bad rows and write them to FILE.rejects.jsonl; without it the run stops before it writes"
    chosen.add_argument("--skip-bad", action="store_true", help=skip)
    workers = "processes to compose with (default 1); the result does not depend on it"
    chosen.add_argument("--workers", type=int, default=1, metavar="N", help=workers)
    report = "also draw the lengths and the positions of the evidence, as PNG into this folder"
    chosen.add_argument("--report", type=Path, metavar="FOLDER", help=report)
    chosen.add_argument("--json", action="store_true", help="print the summary as the last line of stdout, as JSON")
    return parser


def _report(summary: dict[str, Any]) -> None:
    console = Console(stderr=True)
    console.print("in {in} = out {out} + rejected {rejected} + dropped {dropped}".format_map(summary))
    for rule, count in summary["dropped_by_rule"].items():
        console.print(f"dropped: {count} by rule {rule}")
    table = Table("target", "short tokens", "long tokens", "rho", "evidence at")
    for label, length in summary["lengths"].items():
        means = (f"{summary['short_tokens']['mean']:.0f}", f"{length['tokens']['mean']:.0f}", f"{length['rho']:.3f}")
        table.add_row(label, *means, f"{length['evidence_position']['mean']:.2f}")
    console.print(table)


if __name__ == "__main__":
    run(main)
