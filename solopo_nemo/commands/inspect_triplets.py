"""Check a triplet or preference file, and show its problems, statistics and a few samples.

The exit code is 2 if there is a problem. With --tokens the output looks so, prompt and context as plain text::

    short_chosen: 9 tokens, 3 scored
    <|im_start|>user[...]<|im_start|>assistant[[The| answer|<|im_end|>]]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solopo_nemo.commands.asking import encoder_of
from solopo_nemo.runtime.cli import EXIT_USER_ERROR, ArgumentParser, add_template_kwargs, path_or_name, show_json
from solopo_nemo.runtime.errors import require

if TYPE_CHECKING:
    from solopo_nemo.builders.pairs.inspect import Inspection

SCORES = ("assistant", "last")


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("file", type=Path, metavar="FILE", help="a value of data.train: a file or a folder")
    option = parser.options()
    tokenizer = "Hugging Face folder, or a name on the hub; lengths are then in tokens instead of characters"
    option("--tokenizer FOLDER", tokenizer, type=path_or_name)
    add_template_kwargs(option)
    option("--score TURNS", "scored turns of an answer; see data.score", "assistant", choices=SCORES)
    option("--tokens ID", "show only the sequences of this sample, with the scored tokens marked")
    option("--show N", "number of samples to show", 2)
    option("--seed N", "seed of the shown samples", 0)
    parser.add_json()
    given = parser.parse_args(arguments)

    from solopo_nemo.builders.pairs.inspect import find_sample, inspect_file
    from solopo_nemo.data.shown import shown_sequences

    for name in ("chat_template_kwargs", "tokens"):
        require(given.tokenizer or not getattr(given, name), f"--{name.replace('_', '-')}: needs --tokenizer")
    encoder = encoder_of(given, score=given.score) if given.tokenizer else None
    if encoder and given.tokens:
        triplet, needs = find_sample(given.file, given.tokens)
        for sequence in shown_sequences(encoder.tokenizer, encoder.encode([triplet], needs)[0], needs.sequences):
            print(f"{sequence.name}: {sequence.counts}")
            print("".join(f"[[{run.text}]]" if run.scored else run.text for run in sequence.runs))
        return 0
    found = inspect_file(given.file, encoder, given.show, given.seed)
    _report(found)
    for line in (*found.problems, *found.remarks):
        print(line)
    show_json(given, found.summary())
    return EXIT_USER_ERROR if found.problems else 0


def _report(found: Inspection) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from solopo_nemo.data.shown import shorten
    from solopo_nemo.data.triplets import PROMPT_COLUMNS

    console, summary = Console(stderr=True, highlight=False), found.summary()
    console.print(
        f"{summary['in']} rows of {found.kind} = {summary['good']} good + {summary['bad']} bad; "
        f"{summary['problems']} problems"
    )
    names = ("mean", "min", "p50", "p90", "p99", "max")
    table = Table(found.unit, *names)
    for name, values in summary["lengths"].items():
        table.add_row(name, *(f"{values[key]:.0f}" for key in names))
    if table.rows:
        console.print(table)
    if "rho" in summary:
        console.print(f"short to long: rho {summary['rho']}")
    for name, share in found.shares.items():
        console.print(f"{100 * share:5.1f} %  {name}")
    for sample in found.samples:
        console.print(f"\n[bold]{escape(sample.id)}[/bold]")
        prompts = [(name, value) for name in PROMPT_COLUMNS if (value := getattr(sample, name)) is not None]
        shown = prompts if found.kind == "triplets" else [("prompt", value) for _, value in prompts]
        for field in ("chosen", "rejected"):
            shown += [(name, value) for name, _, value in sample.answers(field) if value is not None]
        for name, value in shown:
            console.print(f"[dim]{name}[/dim] {escape(shorten(_text(value)))}")


def _text(value: str | list[dict[str, Any]]) -> str:
    return value if isinstance(value, str) else "\n".join(f"{m['role']}: {m.get('content')}" for m in value)
