"""What the commands of the studies with trainings and a page have in common."""

from __future__ import annotations

import argparse
from pathlib import Path

from solopo_nemo.runtime.cli import ArgumentParser, positive_count
from solopo_nemo.runtime.errors import UserError


def study_parser(text: str, page: str) -> ArgumentParser:
    """A parser with the options of every study.

    Args:
        text: what the command does.
        page: name of the page that it writes.
    """
    parser = ArgumentParser(text)
    option = parser.options()
    option("--plan", "say what would run and how long it takes; run nothing")
    option("--page", "write the page and its plots from the JSON of --results; run nothing")
    option("--out FOLDER", "the starting model, the pairs and the runs", Path("outputs/reproduction"), type=Path)
    option("--results FOLDER", "the results as JSON, and the plots (default FOLDER of --out/results)", type=Path)
    option("--document FILE", f"page (default {page} beside that folder, whose plots it shows)", type=Path)
    option("--workers N", "trainings side by side, of one thread each", 2, type=positive_count)
    parser.add_json()
    return parser


def places(arguments: argparse.Namespace, page: str) -> tuple[Path, Path]:
    """The folder of the results and the page.

    Raises:
        UserError: the page does not lie beside or above that folder.
    """
    results = arguments.results or arguments.out / "results"
    document = arguments.document or results.with_name(page)
    if not results.resolve().is_relative_to(document.parent.resolve()):
        raise UserError(f"--results {results}: the page shows its plots, and must lie beside or above that folder")
    return results, document
