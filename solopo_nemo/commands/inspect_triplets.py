"""Check a triplet or preference file, and show its problems, statistics and a few samples.

The exit code is 2 if there is a problem.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solopo_nemo.runtime.cli import EXIT_USER_ERROR, TEMPLATE_KWARGS, ArgumentParser, add_template_kwargs, show_json
from solopo_nemo.runtime.errors import require

if TYPE_CHECKING:
    from solopo_nemo.builders.pairs.inspect import Inspection

_SHOWN = 240


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("file", type=Path, metavar="FILE", help="what data.train of the recipes takes")
    option = parser.options()
    option("--tokenizer FOLDER", "local Hugging Face folder: lengths are then tokens, not characters", type=Path)
    add_template_kwargs(option)
    option("--show N", "samples to show", 2)
    option("--seed N", "draws the samples", 0)
    parser.add_json()
    given = parser.parse_args(arguments)

    from solopo_nemo.builders.pairs.inspect import inspect_file
    from solopo_nemo.data.tokenize import TripletEncoder
    from solopo_nemo.data.tokenizer_files import load_tokenizer

    require(given.tokenizer or not given.chat_template_kwargs, "--chat-template-kwargs: needs --tokenizer")
    encoder = None
    if given.tokenizer:
        encoder = TripletEncoder(load_tokenizer(given.tokenizer), given.chat_template_kwargs, TEMPLATE_KWARGS)
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

    console, summary = Console(stderr=True, highlight=False), found.summary()
    console.print(
        f"{summary['in']} rows of {found.kind} = {summary['good']} good + {summary['bad']} bad; "
        f"{summary['problems']} problems"
    )
    names = ("mean", "min", "p50", "p90", "p99", "max")
    table = Table(found.unit, *names)
    for name, values in summary["lengths"].items():
        table.add_row(name, *(f"{values[key]:.0f}" for key in names))
    console.print(table)
    if "rho" in summary:
        console.print(f"short to long: rho {summary['rho']}")
    for name, share in found.shares.items():
        console.print(f"{100 * share:5.1f} %  {name}")
    for sample in found.samples:
        console.print(f"\n[bold]{escape(sample.id)}[/bold]")
        for name in ("prompt_short", "prompt_long", "chosen", "rejected"):
            if (value := getattr(sample, name)) is not None:
                console.print(f"[dim]{name}[/dim] {escape(_shorten(value))}")


def _shorten(value: Any) -> str:
    """Shorten a text or messages to the beginning and the end. The end of a prompt contains the question."""
    text = value if isinstance(value, str) else "\n".join(f"{m['role']}: {m.get('content')}" for m in value)
    if len(text) <= 2 * _SHOWN:
        return text
    return f"{text[:_SHOWN]} [... {len(text) - 2 * _SHOWN} characters ...] {text[-_SHOWN:]}"
