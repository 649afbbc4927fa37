"""Build RULER-style short and long contexts from questions: all evidence, and random unrelated paragraphs.

Both prompts of a question hold every supporting paragraph; distractors are added until the prompt, template and
question included, is within one paragraph of its token target and never above it. The short context is nested in
the long one. The same seed gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from solopo_nemo.cli import run
from solopo_nemo.data.contexts.build import BuildSettings, build_contexts
from solopo_nemo.data.tokenize import TripletEncoder, load_tokenizer


def main() -> None:
    """Run the command."""
    arguments = vars(_parser().parse_args())
    folder, as_json, pairs = (arguments.pop(name) for name in ("tokenizer", "json", "pairs"))
    settings = BuildSettings(**arguments, gold_pairs=pairs == "gold")
    summary = build_contexts(settings, TripletEncoder(load_tokenizer(folder)))
    _report(summary)
    if as_json:
        print(json.dumps(summary))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    needed = parser.add_argument_group("needed")
    source = "questions in MuSiQue's official schema, .jsonl or .jsonl.gz"
    needed.add_argument("--source", type=Path, required=True, metavar="FILE", help=source)
    tokenizer = "local Hugging Face folder of the model to train; it needs a chat template"
    needed.add_argument("--tokenizer", type=Path, required=True, metavar="FOLDER", help=tokenizer)
    short = "token target of the short prompt, e.g. 1100"
    needed.add_argument("--short-tokens", type=int, required=True, metavar="N", help=short)
    long = "token target of the long prompt, e.g. 7500"
    needed.add_argument("--long-tokens", type=int, required=True, metavar="N", help=long)
    out = "JSON lines to write; FILE.dropped.jsonl lists questions that a rule left out"
    needed.add_argument("--out", type=Path, required=True, metavar="FILE", help=out)

    chosen = parser.add_argument_group("choices")
    pool = "draw distractors from this file (rows of title, paragraph_text) and not from the other questions"
    chosen.add_argument("--pool", type=Path, metavar="FILE", help=pool)
    pairs = "gold: also write chosen (gold answer) and rejected (wrong answer of the same kind), without sampling"
    chosen.add_argument("--pairs", choices=["none", "gold"], default="none", help=pairs)
    chosen.add_argument("--seed", type=int, default=0, metavar="N", help="seed of all draws (default 0)")
    limit = "use the first N rows only; the others still serve as distractors"
    chosen.add_argument("--limit", type=int, metavar="N", help=limit)
    leak = "allow distractors that hold the answer or an alias"
    chosen.add_argument("--allow-answer-leak", action="store_true", help=leak)
    skip = "go on after bad rows and write them to FILE.rejects.jsonl; without it the run stops before it writes"
    chosen.add_argument("--skip-bad", action="store_true", help=skip)
    chosen.add_argument("--json", action="store_true", help="print the summary as the last line of stdout, as JSON")
    return parser


def _report(summary: dict[str, Any]) -> None:
    table = Table("in", "=", "out", "+", "rejected", "+", "dropped", "short tokens", "long tokens", "rho")
    short, long = summary["short_tokens"]["mean"], summary["long_tokens"]["mean"]
    counts = (str(summary[name]) for name in ("in", "out", "rejected", "dropped"))
    columns = [cell for count in counts for cell in (count, "")]
    table.add_row(*columns[:-1], f"{short:.0f}", f"{long:.0f}", f"{summary['rho']:.3f}")
    console = Console(stderr=True)
    console.print(table)
    for rule, count in summary["dropped_by_rule"].items():
        console.print(f"dropped: {count} by rule {rule}")


if __name__ == "__main__":
    run(main)
