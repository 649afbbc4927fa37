"""Published figures of other programs beside the planner's predictions, for ``docs/planning.md``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from solopo_nemo.pages.tables import Table
from solopo_nemo.planning.layout import Layout
from solopo_nemo.planning.run import Run
from solopo_nemo.planning.search import Plan
from solopo_nemo.planning.shape import load_shape
from solopo_nemo.planning.step_time import Machine
from solopo_nemo.planning.workload import Sequence, Workload
from studies.results import Results, read_yaml

SOURCES = Path(__file__).with_suffix(".yaml")
"""The figures, with their sources and the planner's nearest runs."""
UNITS = {"gib": "GiB a GPU", "tokens": "tokens/s/GPU"}


def predict_all(path: Path) -> Results:
    """Predictions for all figures, as the results file ``path``."""
    known = read_yaml(SOURCES)
    return Results(path, {"notes": known["notes"], "missing": known["missing"]}, [*map(predict, known["figures"])])


def predict(figure: dict[str, Any]) -> dict[str, Any]:
    """A figure with ``predicted``: GiB a GPU, and tokens a second and GPU on the planner's default machine."""
    sequences = tuple(Sequence("text", *size) for size in figure["sequences"])
    settings = figure["run"] | {"layout": Layout(**figure["run"].get("layout", {}))}
    workload = Workload(sequences, sequences if settings.get("online_reference") else ())
    run = Run(load_shape(figure["model"]), workload, **settings)
    plan = Plan.of(run, Machine(gpus=run.layout.world))
    tokens = sum(sequence.inputs for sequence in sequences) * run.global_batch / plan.time.total / run.layout.world
    return figure | {"predicted": {"gib": round(plan.memory.gib, 1), "tokens": round(tokens)}}


def table(figures: list[dict[str, Any]]) -> Table:
    """Published, predicted, and the difference of each figure."""
    rows = [
        (
            f"[{figure['name']}]({figure['source']})",
            figure["note"],
            UNITS[key],
            f"{value:,}",
            f"{figure['predicted'][key]:,}",
            f"{figure['predicted'][key] / value - 1:+.0%}",
        )
        for figure in figures
        for key, value in figure["published"].items()
    ]
    return Table(("run", "note", "unit", "published", "predicted", "difference"), rows, "lllr")
