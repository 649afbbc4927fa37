"""Convert preference files between this project, TRL, NeMo-RL and LongPO. The format of the source is recognised.

A file of one prompt (TRL, NeMo-RL) becomes rows of prompt, chosen, rejected, which recipes/long_po.py takes; LongPO's
becomes triplets, one a question.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console

from solopo_nemo.builders.pairs.convert import FORMATS, convert_file
from solopo_nemo.runtime.cli import ArgumentParser, run


def main() -> None:
    """Run the command."""
    arguments = _parser().parse_args()
    counts = convert_file(arguments.source, arguments.out, arguments.to, arguments.side, arguments.skip_bad)
    Console(stderr=True).print(
        f"{counts['in']} rows = {counts['converted']} converted + {counts['rejected']} rejected; "
        f"{counts['out']} rows written"
    )
    if arguments.json:
        print(json.dumps(counts))


def _parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = ".jsonl, .jsonl.gz, .parquet, a saved datasets folder, or a directory of such files"
    parser.add_argument("source", type=Path, metavar="SOURCE", help=source)
    parser.add_argument("out", type=Path, metavar="OUT", help="JSON lines to write")
    parser.add_argument("--to", choices=FORMATS, required=True, help="format to write")
    side = "which prompt of a triplet to keep, where the format has one"
    parser.add_argument("--side", choices=["short", "long"], help=side)
    skip = "go on after bad rows and write them to OUT.rejects.jsonl"
    parser.add_argument("--skip-bad", action="store_true", help=skip)
    parser.add_argument("--json", action="store_true", help="print the counts as the last line of stdout, as JSON")
    return parser


if __name__ == "__main__":
    run(main)
