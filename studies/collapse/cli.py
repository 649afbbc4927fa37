"""Study when the short-to-long alignment collapses, in miniature and on CPU, and write a page about it.

Runs the recipes a few hundred times on the world in miniature of tools/reproduce.py, with which it shares the starting
model and the pairs of --out. Finished parts are kept there: an interrupted command goes on where it was ended.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from solopo_nemo.runtime import cli
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.output import check_writable


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    arguments = _parser().parse_args(argv)
    from studies.collapse.cells import RATES

    rates = RATES[-arguments.rates :]
    if arguments.plan:
        return _summary(arguments, _plan(arguments, rates))
    results = arguments.results or arguments.out / "results"
    document = arguments.document or results.with_name("collapse.md")
    for key, folder in (("--out", arguments.out), ("--results", results), ("--document", document.parent)):
        check_writable(folder, key)
    if not results.resolve().is_relative_to(document.parent.resolve()):
        raise UserError(f"--results {results}: the page shows its plots, and must lie beside or above that folder")
    from studies.collapse.page import Study, write_page
    from studies.collapse.runs import run_study

    kept = results / "collapse.json"
    if not arguments.page:
        run_study(kept, arguments.out, arguments.seeds, arguments.workers, rates, 60 * arguments.minutes)
    study = Study.read(kept)
    write_page(study, document, results)
    print(f"page: {document}")
    summary = {"document": str(document), "runs": len(study.outcomes), "planned": study.planned}
    return _summary(arguments, summary)


def _plan(arguments: argparse.Namespace, rates: Sequence[float]) -> dict[str, object]:
    from studies.collapse.cells import cells
    from studies.collapse.runs import missing_cells

    planned = list(cells(arguments.seeds, tuple(rates)))
    missing = missing_cells(planned, arguments.out)
    minutes = sum(cell.seconds for cell in missing) / 60
    print(
        f"{len(planned)} runs, {len(planned) - len(missing)} of them finished: about {minutes:.0f} minutes of a core, "
        f"{minutes / arguments.workers:.0f} on {arguments.workers} idle ones"
    )
    return {"runs": [cell.name for cell in missing], "core_minutes": round(minutes, 1)}


def _summary(arguments: argparse.Namespace, summary: dict[str, object]) -> int:
    cli.show_json(arguments, summary)
    return 0


def _parser() -> cli.ArgumentParser:
    parser = cli.ArgumentParser(__doc__)
    parser.add_argument(
        "--seeds", type=cli.positive_count, default=2, metavar="N", help="of each cell of the map (default 2)"
    )
    rates = "learning rates: the highest alone, or both (default 2)"
    parser.add_argument("--rates", type=int, choices=(1, 2), default=2, help=rates)
    parser.add_argument("--plan", action="store_true", help="say what would run and how long it takes; run nothing")
    page = "write the page and its plots from the JSON of --results; run nothing"
    parser.add_argument("--page", action="store_true", help=page)
    minutes = "begin no run after so many minutes, and write the page of those that there are"
    parser.add_argument("--minutes", type=cli.positive_number, default=math.inf, metavar="N", help=minutes)
    out = "folder of the starting model, the pairs and the runs (default outputs/reproduction)"
    parser.add_argument("--out", type=Path, default=Path("outputs/reproduction"), metavar="FOLDER", help=out)
    results = "folder for the results as JSON, and for the plots (default FOLDER of --out/results)"
    parser.add_argument("--results", type=Path, metavar="FOLDER", help=results)
    document = "page to write (default collapse.md beside that folder, whose plots it shows)"
    parser.add_argument("--document", type=Path, metavar="FILE", help=document)
    workers = "trainings side by side, of one thread each (default 2)"
    parser.add_argument("--workers", type=cli.positive_count, default=2, metavar="N", help=workers)
    parser.add_json()
    return parser
