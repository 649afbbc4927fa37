"""Common command-line options of the studies that train models and write a page."""

from __future__ import annotations

import argparse
from pathlib import Path

from solopo_nemo.runtime.cli import ArgumentParser, positive_count
from solopo_nemo.runtime.errors import UserError


def study_parser(text: str, page: str) -> ArgumentParser:
    """A parser with the common options.

    Args:
        text: description of the command.
        page: default name of its page.
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
    """The results folder and the path of the page.

    Raises:
        UserError: the results folder is not below the folder of the page.
    """
    results = arguments.results or arguments.out / "results"
    document = arguments.document or results.with_name(page)
    if not results.resolve().is_relative_to(document.parent.resolve()):
        raise UserError(f"--results {results}: the page shows its plots, and must lie beside or above that folder")
    return results, document
