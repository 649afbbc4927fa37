"""Pages about the planner: predicted layouts for docs/planning.md, and a comparison of predicted and measured peaks.

usage: python studies/benchmarks/planner.py table
       python studies/benchmarks/planner.py trace
       python studies/benchmarks/planner.py steps
       python studies/benchmarks/planner.py check [--work FOLDER] [--out FILE]

`table` writes docs/planning.md, its JSON (layouts, public figures) and its plot. `trace` adds traced peaks
(dry_run=true) to the layouts there, one after the other; what is traced already is not traced again, so that it may be
stopped at any time. For both, a peak of a program with other formulas is not traced. `steps` makes the planner's
formulas anew (solopo_nemo/assets/traced_steps.json, some 6 minutes), after a change of what layers, head or schedule
hold. `check` trains every configuration of planner_check.py in new
processes on this machine, and writes measured, predicted and traced peaks to --out, from which docs/performance.md is
generated. Runs in --out are not measured again; predictions and traces are always made again. The exit code is 1 if a
prediction differs from the measurement by more than 10 %.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import track

from solopo_nemo.runtime.cli import ArgumentParser, run
from studies.benchmarks import planner_check as check
from studies.benchmarks import planning, public, suite
from studies.benchmarks.session import Session
from studies.benchmarks.step import measure_step
from studies.results import Results

LAYOUTS, PUBLIC = planning.RESULTS / "layouts.json", planning.RESULTS / "public.json"


def main() -> int:
    """Run the command."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("command", choices=("table", "trace", "steps", "check"))
    option = parser.options()
    option("--work FOLDER", "models and samples of `check`", Path("outputs/benchmark/work"), type=Path)
    option("--out FILE", "results of `check` (default docs/performance/planner.json)", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "check":
        return _check(arguments.work, arguments.out or suite.RESULTS / "planner.json")
    if arguments.command == "steps":
        return _steps()
    return _table() if arguments.command == "table" else _trace()


def _table() -> int:
    before = Results.read(LAYOUTS).runs if LAYOUTS.is_file() else []
    cells = [planning.make_cell(*place) for place in track(list(planning.all_cells()), "planning")]
    planning.keep_traces(cells, before)
    results = Results(LAYOUTS, planning.about(), cells)
    results.save()
    figures = public.predict_all(PUBLIC)
    figures.save()
    planning.draw_longest(results, planning.RESULTS)
    planning.write_document(results, figures, planning.DOCUMENT)
    print(planning.DOCUMENT)
    return 0


def _trace() -> int:
    results, figures = Results.read(LAYOUTS), Results.read(PUBLIC)
    for cell, long in track(planning.to_trace(results.runs), "tracing"):
        peak = {planning.TRACED: planning.traced_peak(cell, long), planning.FORMULAS: planning.formulas()}
        cell["plans"][str(long)] |= peak
        results.save()
        planning.write_document(results, figures, planning.DOCUMENT)
    return 0


def _steps() -> int:
    from solopo_nemo.core.device import prepare_process

    prepare_process()
    from studies.benchmarks import traced_steps

    traced_steps.write()
    return 0


def _check(work: Path, out: Path) -> int:
    results, command = Results.open(out, benchmark="planner"), "python studies/benchmarks/planner.py check"
    session = Session(results, command, lambda spec: measure_step(spec, work.resolve()))
    rows = []
    for spec in track(check.SPECS, "measuring"):
        run = session.run(spec)
        rows.append(check.compare(spec, run, check.trace(spec)["above_model"]))
        run |= {"predicted_bytes": rows[-1].predicted.above_model, "traced_bytes": rows[-1].traced}
        results.save()
    Console().print(check.table(rows).terminal())
    return int(any(abs(row.error) > check.TOLERANCE for row in rows))


if __name__ == "__main__":
    run(main)
