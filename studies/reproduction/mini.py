"""The miniature experiments as one command: print the plan, check it, or run everything and write the page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from solopo_nemo.pages.tables import Table
from solopo_nemo.runtime.output import check_writable
from solopo_nemo.runtime.progress import with_progress
from studies.reproduction.claims import all_claims
from studies.reproduction.collected import STUDIES, Collected
from studies.reproduction.runs import Result
from studies.reproduction.schedule import Work, read_timings, run_all
from studies.reproduction.study import Cell, Size, all_cells, choose
from studies.results import machine, revision, versions


@dataclass(frozen=True)
class Wanted:
    """The request of a command.

    Attributes:
        size: numbers of seeds, steps, questions and pairs.
        only: patterns for :func:`studies.reproduction.study.choose`; None selects all cells.
        out: folder of the starting model, the pairs and the runs.
        results: folder of the JSON results and the plots.
        document: page to write.
    """

    size: Size
    only: str | None
    out: Path
    results: Path
    document: Path


def reproduce(wanted: Wanted, workers: int, mode: str) -> dict[str, Any]:
    """Run, check or print the experiments.

    Args:
        wanted: the request.
        workers: number of concurrent trainings.
        mode: ``plan`` prints the plan, ``dry-run`` also checks it, and ``run`` runs the missing parts and writes the
            page.

    Returns:
        The summary.

    Raises:
        UserError: the input is invalid.
        RunFault: a run failed.
    """
    cells = choose(all_cells(wanted.size), wanted.only)
    work = Work(wanted.out, cells)
    if mode == "plan":
        return _plan(work, workers)
    for key, folder in (("--out", wanted.out), ("--results", wanted.results), ("--document", wanted.document.parent)):
        check_writable(folder, key)
    if mode == "dry-run":
        _check(work)
        return _plan(work, workers)
    run_all(work, workers)
    found = gather(wanted, all_cells(wanted.size))
    found.write(wanted.results)
    from studies.reproduction.page import write_page

    write_page(wanted.results, wanted.document)
    return {
        "document": str(wanted.document),
        "runs": sum(len(results) for study in found.runs.values() for results in study.values()),
        "claims": {claim.text: claim.verdict for claim in all_claims(found)},
    }


def gather(wanted: Wanted, cells: Sequence[Cell]) -> Collected:
    """Collect all results in the work folder."""
    runs: dict[str, dict[str, list[Result]]] = {study: {} for study in STUDIES}
    for cell in cells:
        path = cell.result(wanted.out)
        if path.is_file():
            runs[cell.study].setdefault(cell.name, []).append(Result.read(path))
    about = {
        "machine": machine(),
        "versions": versions(),
        "revision": revision(),
        "size": asdict(wanted.size),
        "seconds": read_timings(wanted.out),
        "cores": os.cpu_count(),
    }
    return Collected({study: found for study, found in runs.items() if found}, about)


def _check(work: Work) -> None:
    """Check that earlier results are readable, and that the configuration of every method is valid."""
    from solopo_nemo.config.schema import load_config

    for cell in work.cells:
        if cell.result(work.folder).is_file():
            Result.read(cell.result(work.folder))
    ground = work.ground()
    firsts = {(cell.study, cell.name): cell for cell in reversed(work.cells)}
    for cell in with_progress(list(firsts.values()), "checking configurations"):
        if cell.run and cell.pairs:
            output = cell.result(work.folder).parent / "run"
            arguments = cell.run.arguments(ground.start.nemo, ground.pairs(cell.pairs), output)
            load_config(cell.run.method.recipe, arguments)


def _plan(work: Work, workers: int) -> dict[str, Any]:
    """Print and return the plan."""
    missing, ground = work.missing(), work.ground()
    console, rows = Console(), []
    for study in STUDIES:
        for name in dict.fromkeys(cell.name for cell in work.cells if cell.study == study):
            cells = [cell for cell in work.cells if (cell.study, cell.name) == (study, name)]
            left = [cell for cell in cells if cell in missing]
            minutes = sum(cell.seconds for cell in left) / 60
            rows.append((study, name, str(len(cells)), str(len(cells) - len(left)), f"{minutes:.1f}"))
    head = ("study", "method or setting", "seeds", "finished", "minutes of a core")
    console.print(Table(head, rows, "llr").terminal())
    minutes = work.seconds() / 60
    console.print(
        f"{'the starting model, ' if ground.start_missing() else ''}{len(ground.missing())} files of pairs and "
        f"{len(missing)} runs: "
        f"about {minutes:.0f} minutes of a core, {minutes / workers:.0f} on {workers} idle ones",
        highlight=False,
    )
    return {
        "start": ground.start_missing(),
        "pairs": [plan.name for plan in ground.missing()],
        "runs": [cell.key for cell in missing],
        "core_minutes": round(minutes, 1),
        "minutes": round(minutes / workers, 1),
    }
