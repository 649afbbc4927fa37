"""Write docs/planning.md, its JSON and its plot: predicted layouts, hours and longest contexts.

usage: python benchmarks/planner.py table
"""

from __future__ import annotations

import argparse
import json

from rich.progress import track

from solopo_nemo.cli import run
from solopo_nemo.data.output import atomic_text
from solopo_nemo.planning import tables
from solopo_nemo.planning.charts import draw_longest
from solopo_nemo.planning.document import DOCUMENT, RESULTS, write_document


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("table",))
    parser.parse_args()
    places = list(tables.all_cells())
    data = tables.as_json(tables.make_cell(*place) for place in track(places, "planning"))
    RESULTS.mkdir(parents=True, exist_ok=True)
    with atomic_text(RESULTS / "layouts.json") as stream:
        stream.write(json.dumps(data, indent=1) + "\n")
    draw_longest(data, RESULTS)
    write_document(data)
    print(DOCUMENT)


if __name__ == "__main__":
    run(main)
