"""The planner's documents: predicted layouts for docs/planning.md, and predicted beside measured peaks.

usage: python benchmarks/planner.py table
       python benchmarks/planner.py check [--work FOLDER] [--out FILE]

`table` writes docs/planning.md, its JSON and its plot. `check` trains every configuration of
solopo_nemo/planning/check.py in fresh processes on this machine and ends with 1 where a prediction is more than 10 %
off; what is in --out already is not measured again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.progress import track

from solopo_nemo.cli import run
from solopo_nemo.data.output import atomic_text
from solopo_nemo.planning import check, tables
from solopo_nemo.planning.charts import draw_longest
from solopo_nemo.planning.document import DOCUMENT, RESULTS, write_document


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("table", "check"))
    work = Path("outputs/benchmark/work")
    parser.add_argument("--work", type=Path, default=work, help=f"models and samples of `check` (default {work})")
    parser.add_argument("--out", type=Path, default=RESULTS / "check.json", help="results of `check`")
    arguments = parser.parse_args()
    return _table() if arguments.command == "table" else _check(arguments.work, arguments.out)


def _table() -> int:
    places = list(tables.all_cells())
    data = tables.as_json(tables.make_cell(*place) for place in track(places, "planning"))
    RESULTS.mkdir(parents=True, exist_ok=True)
    with atomic_text(RESULTS / "layouts.json") as stream:
        stream.write(json.dumps(data, indent=1) + "\n")
    draw_longest(data, RESULTS)
    write_document(data)
    print(DOCUMENT)
    return 0


def _check(work: Path, out: Path) -> int:
    measured = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    out.parent.mkdir(parents=True, exist_ok=True)
    for spec in track(check.SPECS, "measuring"):
        if spec.key() in measured:
            continue
        measured[spec.key()] = check.measure(spec, work.resolve())
        with atomic_text(out) as stream:
            stream.write(json.dumps(measured, indent=1) + "\n")
    rows = [check.compare(spec, measured[spec.key()]) for spec in check.SPECS]
    Console().print(check.table(rows))
    return int(any(abs(row.error) > check.TOLERANCE for row in rows))


if __name__ == "__main__":
    run(main)
