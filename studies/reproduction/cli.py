"""The paper's experiments: in miniature on this machine (scale=mini), or as a plan for GPUs (scale=7b).

scale=mini pre-trains a tiny Qwen2 on short contexts and samples preference pairs from it. It trains every method of the
paper with its recipe, scores it at 1 to 16 times the short length, and writes a page like docs/reproduction.md from the
results. Finished parts are kept in --out. To resume an interrupted run, start the same command again.

scale=growth compares growing the window in rounds with one training at the last length and with staying at 8x.

With scale=7b, --plan prints the commands of the paper's protocol. --dry-run also checks everything that needs neither
data nor GPUs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from solopo_nemo.runtime.cli import ArgumentParser, show_json
from solopo_nemo.runtime.errors import UserError
from studies.cli import places, study_parser

if TYPE_CHECKING:
    from studies.reproduction.growth import GrowthSize
    from studies.reproduction.study import Size

_SCALES = ("mini", "7b", "growth")
_PAGE = "reproduction.md"


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    arguments = _parser().parse_args(argv)
    scale, size = _settings(arguments.settings)
    summary = _full(arguments) if scale == "7b" else _RUN[scale](arguments, size)
    show_json(arguments, summary)
    return 0


def _mini(arguments: argparse.Namespace, size: Size) -> dict[str, Any]:
    results, document = places(arguments, _PAGE)
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


def _growth(arguments: argparse.Namespace, size: GrowthSize) -> dict[str, Any]:
    from studies.reproduction import growth

    if arguments.only or arguments.dry_run:
        raise UserError("scale=growth: takes neither --only nor --dry-run")
    if arguments.plan:
        return growth.plan_growth(size, arguments.workers)
    results, document = places(arguments, "growth.md")
    if arguments.page:
        return growth.write_growth(results, document)
    return growth.run_growth(size, arguments.out, results, document, arguments.workers)


_RUN: dict[str, Callable[[argparse.Namespace, Any], dict[str, Any]]] = {"mini": _mini, "growth": _growth}


def _full(arguments: argparse.Namespace) -> dict[str, Any]:
    from studies.reproduction import full

    if not arguments.plan and not arguments.dry_run:
        raise UserError("scale=7b: runs on GPUs, command by command: --plan prints them, --dry-run checks each")
    return full.protocol(check=arguments.dry_run)


def _settings(words: Sequence[str]) -> tuple[str, Size | GrowthSize]:
    """Parse the scale and the sizes from ``key=value`` words.

    Raises:
        UserError: a key is unknown or a value is invalid.
    """
    from studies.reproduction.growth import GrowthSize
    from studies.reproduction.study import Size

    scale = "growth" if "scale=growth" in words else "mini"
    size: Size | GrowthSize = GrowthSize() if scale == "growth" else Size()
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
    parser = study_parser(__doc__, _PAGE)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="scale, seeds, steps, questions, pairs")
    option = parser.options()
    option("--only NAMES", "studies (main, alpha, rate, time) or runs (main/solo-dpo-1, main/*orpo*), by commas")
    option("--dry-run", "check configurations, folders and earlier results; run nothing")
    return parser
