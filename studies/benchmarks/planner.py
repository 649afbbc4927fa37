"""The planner's documents: predicted layouts for docs/planning.md, and predicted beside measured peaks.

usage: python studies/benchmarks/planner.py table
       python studies/benchmarks/planner.py check [--work FOLDER] [--out FILE]

`table` writes docs/planning.md, its JSON and its plot. `check` trains every configuration of
planner_check.py in fresh processes on this machine, writes the peaks beside the predictions into --out,
where docs/performance.md finds them, and ends with 1 where a prediction is more than 10 % off. What is in --out already
is not measured again; the predictions are.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.progress import track

from solopo_nemo.runtime.cli import run
from solopo_nemo.runtime.output import atomic_text
from studies.benchmarks import planner_check as check
from studies.benchmarks import planning, suite
from studies.benchmarks.results import Results
from studies.benchmarks.step import measure_step


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("table", "check"))
    work = Path("outputs/benchmark/work")
    parser.add_argument("--work", type=Path, default=work, help=f"models and samples of `check` (default {work})")
    out = suite.RESULTS / "planner.json"
    parser.add_argument(
        "--out", type=Path, default=out, help="results of `check` (default docs/performance/planner.json)"
    )
    arguments = parser.parse_args()
    return _table() if arguments.command == "table" else _check(arguments.work, arguments.out)


def _table() -> int:
    places = list(planning.all_cells())
    data = planning.about() | {"cells": [planning.make_cell(*place) for place in track(places, "planning")]}
    with atomic_text(planning.RESULTS / "layouts.json") as stream:
        stream.write(json.dumps(data, indent=1) + "\n")
    planning.draw_longest(data, planning.RESULTS)
    planning.write_document(data, planning.DOCUMENT)
    print(planning.DOCUMENT)
    return 0


def _check(work: Path, out: Path) -> int:
    results, command = Results.open(out, "planner"), "python studies/benchmarks/planner.py check"
    for spec in track(check.SPECS, "measuring"):
        run = results.find(spec, 0)
        if run is None:
            run = results.add(spec, 0, command, measure_step(spec, work.resolve()))
        run["predicted_bytes"] = check.predict(spec).above_model
        results.save()
    rows = [check.compare(spec, run) for spec in check.SPECS if (run := results.find(spec, 0))]
    Console().print(check.table(rows).terminal())
    return int(any(abs(row.error) > check.TOLERANCE for row in rows))


if __name__ == "__main__":
    run(main)
