"""Convert preference files between this project, TRL, NeMo-RL and LongPO. The format of the source is detected.

A file with one prompt per row (TRL, NeMo-RL) becomes rows of prompt, chosen and rejected for the recipe long_po. A
LongPO file becomes triplets, one for each question.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from solopo_nemo.builders.pairs.convert import FORMATS, convert_file
from solopo_nemo.runtime.cli import ArgumentParser, show_json


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    parser = ArgumentParser(__doc__)
    source = ".jsonl, .jsonl.gz, .parquet, a saved datasets folder, or a directory of such files"
    parser.add_argument("source", type=Path, metavar="SOURCE", help=source)
    parser.add_argument("out", type=Path, metavar="OUT", help="JSON lines to write")
    option = parser.options()
    option("--to", "format to write", choices=FORMATS, required=True)
    option("--side", "which prompt of a triplet to keep, where the format has one", choices=["short", "long"])
    option("--skip-bad", "go on after bad rows and write them to OUT.rejects.jsonl")
    parser.add_json()
    given = parser.parse_args(arguments)

    from rich.console import Console

    counts = convert_file(given.source, given.out, given.to, given.side, given.skip_bad)
    Console(stderr=True).print(
        "{in} rows = {converted} converted + {rejected} rejected; {out} rows written".format_map(counts)
    )
    show_json(given, counts)
