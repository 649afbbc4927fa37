"""Study when the short-to-long alignment collapses, in miniature and on CPU, and write a page about it.

Runs the recipes a few hundred times on the synthetic data of tools/reproduce.py. Both commands share the starting model
and the pairs in --out. Finished parts are kept there. To resume an interrupted run, start the same command again.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import Any

from solopo_nemo.runtime import cli
from solopo_nemo.runtime.output import check_writable
from studies.cli import places, study_parser

_PAGE = "collapse.md"


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    arguments = _parser().parse_args(argv)
    from studies.collapse.cells import RATES

    rates = RATES[-arguments.rates :]
    cli.show_json(arguments, _plan(arguments, rates) if arguments.plan else _run(arguments, rates))
    return 0


def _run(arguments: argparse.Namespace, rates: Sequence[float]) -> dict[str, Any]:
    results, document = places(arguments, _PAGE)
    for key, folder in (("--out", arguments.out), ("--results", results), ("--document", document.parent)):
        check_writable(folder, key)
    from studies.collapse.page import Study, write_page
    from studies.collapse.runs import run_study

    kept = results / "collapse.json"
    if not arguments.page:
        run_study(kept, arguments.out, arguments.seeds, arguments.workers, rates, 60 * (arguments.minutes or math.inf))
    study = Study.read(kept)
    write_page(study, document, results)
    print(f"page: {document}")
    return {"document": str(document), "runs": len(study.outcomes), "planned": study.planned}


def _plan(arguments: argparse.Namespace, rates: Sequence[float]) -> dict[str, Any]:
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


def _parser() -> cli.ArgumentParser:
    parser = study_parser(__doc__, _PAGE)
    option = parser.options()
    option("--seeds N", "of each cell of the map", 2, type=cli.positive_count)
    option("--rates N", "learning rates: the highest alone, or both", 2, choices=(1, 2))
    minutes = "begin no run after so many minutes, and write the page of those that there are"
    option("--minutes N", minutes, type=cli.positive_number)
    return parser
