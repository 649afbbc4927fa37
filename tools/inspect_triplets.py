"""Check a triplet or preference file and show what is in it: statistics, a few samples, and every problem.

Exit code 2 if there is any problem.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from solopo_nemo.builders.pairs.inspect import Inspection, inspect_file
from solopo_nemo.data.tokenize import TripletEncoder, load_tokenizer
from solopo_nemo.data.triplets import Prompt
from solopo_nemo.runtime.cli import EXIT_USER_ERROR, ArgumentParser, run

_SHOWN = 240


def main() -> int:
    """Run the command."""
    arguments = _parser().parse_args()
    encoder = TripletEncoder(load_tokenizer(arguments.tokenizer)) if arguments.tokenizer else None
    found = inspect_file(arguments.file, encoder, arguments.show, arguments.seed)
    _report(found)
    for problem in found.problems:
        print(problem)
    if arguments.json:
        print(json.dumps(found.summary()))
    return EXIT_USER_ERROR if found.problems else 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE", help="what data.train of the recipes takes")
    tokenizer = "local Hugging Face folder: lengths are then tokens, not characters"
    parser.add_argument("--tokenizer", type=Path, metavar="FOLDER", help=tokenizer)
    parser.add_argument("--show", type=int, default=2, metavar="N", help="samples to show (default 2)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="draws the samples (default 0)")
    parser.add_argument("--json", action="store_true", help="print the summary as the last line of stdout, as JSON")
    return parser


def _report(found: Inspection) -> None:
    console = Console(stderr=True, highlight=False)
    summary = found.summary()
    console.print(
        f"{summary['in']} rows of {found.kind} = {summary['good']} good + {summary['bad']} bad; "
        f"{summary['problems']} problems"
    )
    table = Table(found.unit, "mean", "min", "p50", "p90", "p99", "max")
    for name, values in summary["lengths"].items():
        table.add_row(name, *(f"{values[key]:.0f}" for key in ("mean", "min", "p50", "p90", "p99", "max")))
    console.print(table)
    if "rho" in summary:
        console.print(f"short to long: rho {summary['rho']}")
    for name, share in found.shares.items():
        console.print(f"{100 * share:5.1f} %  {name}")
    for sample in found.samples:
        console.print(f"\n[bold]{escape(sample.id)}[/bold]")
        for name in ("prompt_short", "prompt_long", "chosen", "rejected"):
            value = getattr(sample, name)
            if value is not None:
                console.print(f"[dim]{name}[/dim] {escape(_shorten(value))}")


def _shorten(value: Prompt) -> str:
    """Return the beginning and the end of a text, which for a prompt is the question."""
    text = value if isinstance(value, str) else "\n".join(f"{m['role']}: {m['content']}" for m in value)
    if len(text) <= 2 * _SHOWN:
        return text
    return f"{text[:_SHOWN]} [... {len(text) - 2 * _SHOWN} characters ...] {text[-_SHOWN:]}"


if __name__ == "__main__":
    run(main)
