"""The paper's experiments: in miniature on this machine (scale=mini), or as a plan for GPUs (scale=7b).

In miniature: a tiny Qwen2 is pre-trained on short contexts, preference pairs are sampled from it, every method of the
paper is trained by its recipe and scored at 1 to 16 times the short length; then a page like docs/reproduction.md is
written from the results. Finished parts are kept in --out: an interrupted command goes on where it was ended.

At full size: the commands of the paper's protocol, checked as far as that goes without data and GPUs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solopo_nemo.runtime.cli import ArgumentParser, show_json
from solopo_nemo.runtime.errors import UserError

if TYPE_CHECKING:
    from studies.reproduction.study import Size

_SCALES = ("mini", "7b")


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    arguments = _parser().parse_args(argv)
    scale, size = _settings(arguments.settings)
    if arguments.workers < 1:
        raise UserError(f"--workers {arguments.workers}: must be at least 1")
    summary = _full(arguments) if scale == "7b" else _mini(arguments, size)
    show_json(arguments, summary)
    return 0


def _mini(arguments: argparse.Namespace, size: Size) -> dict[str, Any]:
    results = arguments.results or arguments.out / "results"
    document = arguments.document or results.with_name("reproduction.md")
    if arguments.page:
        from studies.reproduction.page import write_page

        write_page(results, document)
        return {"document": str(document)}
    from studies.reproduction import mini

    return mini.reproduce(
        mini.Wanted(size, arguments.only, arguments.out, results, document),
        workers=arguments.workers,
        mode="plan" if arguments.plan else "dry-run" if arguments.dry_run else "run",
    )


def _full(arguments: argparse.Namespace) -> dict[str, Any]:
    from studies.reproduction import full

    if not arguments.plan and not arguments.dry_run:
        raise UserError("scale=7b: runs on GPUs, command by command: --plan prints them, --dry-run checks each")
    return full.protocol(check=arguments.dry_run)


def _settings(words: Sequence[str]) -> tuple[str, Size]:
    """The scale and the sizes out of ``key=value`` words.

    Raises:
        UserError: an unknown key, or a value that cannot be.
    """
    from studies.reproduction.study import Size

    scale, size = "mini", Size()
    keys = [field.name for field in fields(Size)]
    for word in words:
        key, _, value = word.partition("=")
        if key == "scale" and value in _SCALES:
            scale = value
        elif key in keys and value.isdecimal() and int(value) >= 1:
            size = replace(size, **{key: int(value)})
        elif key in ("scale", *keys):
            allowed = " or ".join(_SCALES) if key == "scale" else "a number of at least 1"
            raise UserError(f"{word}: must be {allowed}")
        else:
            raise UserError(f"{word}: no such setting; there are scale, {', '.join(keys)}, written key=value")
    return scale, size


def _parser() -> ArgumentParser:
    parser = ArgumentParser(__doc__)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="scale, seeds, steps, questions, pairs")
    only = "studies (main, alpha, rate, time) or runs (main/solo-dpo-1, main/*orpo*), separated by commas"
    parser.add_argument("--only", metavar="NAMES", help=only)
    parser.add_argument("--plan", action="store_true", help="say what would run and how long it takes; run nothing")
    dry = "check configurations, folders and earlier results; run nothing"
    parser.add_argument("--dry-run", action="store_true", help=dry)
    page = "write the page and its plots from the JSON of --results; run nothing"
    parser.add_argument("--page", action="store_true", help=page)
    out = "folder of the starting model, the pairs and the runs (default outputs/reproduction)"
    parser.add_argument("--out", type=Path, default=Path("outputs/reproduction"), metavar="FOLDER", help=out)
    results = "folder for the results as JSON, and for the plots (default FOLDER of --out/results)"
    parser.add_argument("--results", type=Path, metavar="FOLDER", help=results)
    document = "page to write (default reproduction.md beside that folder, whose plots it shows)"
    parser.add_argument("--document", type=Path, metavar="FILE", help=document)
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="trainings side by side (default 2)")
    parser.add_json()
    return parser
