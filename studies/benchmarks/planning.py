"""The page ``docs/planning.md``: predictions for SoLoPO and vanilla objectives, for 4 models on 8 to 128 GPUs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from solopo_nemo.config.schema import load_config
from solopo_nemo.pages import figures
from solopo_nemo.pages.figures import Chart
from solopo_nemo.pages.render import write_page
from solopo_nemo.pages.tables import Table
from solopo_nemo.pages.theme import Theme
from solopo_nemo.planning.overview import furthest
from solopo_nemo.planning.search import Plan, search
from solopo_nemo.planning.shape import load_shape
from solopo_nemo.planning.step_time import Machine
from solopo_nemo.planning.workload import Lengths
from studies.paths import ASSETS, DOCS
from studies.results import Results

DOCUMENT = DOCS / "planning.md"
RESULTS = DOCS / "planning"
MODELS = {
    "Qwen2.5-7B": "qwen2_5_7b",
    "Llama-3.1-8B": "llama3_1_8b",
    "Qwen2.5-32B": "qwen2_5_32b",
    "Qwen2.5-72B": "qwen2_5_72b",
}
RECIPES = {"SoLo-DPO": "solo_dpo", "Long-DPO": "long_po"}
GPUS = (8, 16, 32, 64, 128)
LONG = tuple(2**i * 1024 for i in range(5, 11))
SHORT, RESPONSE, SAMPLES = 1024, 128, 5000
CHART = Chart("longest", "Longest long prompt that fits", "")

Cell = dict[str, Any]


def make_cell(model: str, recipe: str, gpus: int) -> Cell:
    """The fastest plan at each length and the longest prompt, for a model, a recipe and a number of GPUs."""
    config = load_config(RECIPES[recipe], [f"model={MODELS[model]}"])
    shape, machine = load_shape(config.model.init), Machine(gpus=gpus)
    plans: dict[str, Any] = {}
    for long in LONG:
        found = search(config, shape, Lengths(long, SHORT, RESPONSE), machine)
        plans[str(long)] = _brief(found[0]) if found else None
    far = furthest(config, shape, Lengths(1, SHORT, RESPONSE), machine)
    longest = {"long": far[0], **_brief(far[1])} if far else None
    return {"model": model, "recipe": recipe, "gpus": gpus, "plans": plans, "longest": longest}


def _brief(plan: Plan) -> dict[str, Any]:
    """A plan as JSON, without the parts of its peak."""
    values = plan.as_json() | {"epoch_hours": round(plan.hours(SAMPLES), 3)}
    del values["memory"]["parts"]
    return values


def all_cells() -> Iterator[tuple[str, str, int]]:
    """The arguments of all calls of :func:`make_cell`."""
    for model in MODELS:
        for gpus in GPUS:
            for recipe in RECIPES:
                yield model, recipe, gpus


def about() -> dict[str, Any]:
    """The settings that all cells share."""
    machine = dataclasses.asdict(Machine()) | {"gpus": None}
    return {"machine": machine, "short": SHORT, "response": RESPONSE, "samples": SAMPLES}


def write_document(results: Results, document: Path) -> None:
    """Write the page from the results of all cells."""
    cells = {(cell["model"], cell["recipe"], cell["gpus"]): cell for cell in results.runs}

    def both(model: str, show: Callable[[Cell], str]) -> list[str]:
        return [" / ".join(show(cells[model, recipe, gpus]) for recipe in RECIPES) for gpus in GPUS]

    def table(first: str, rows: Sequence[Sequence[str]]) -> Table:
        return Table((first, *(f"{gpus} GPUs" for gpus in GPUS)), rows)

    models = []
    for model in MODELS:
        hours = [(_k(long), *both(model, partial(_hours, long=long))) for long in LONG]
        layouts = [
            (_k(long), *(_layout(cells[model, "SoLo-DPO", gpus]["plans"][str(long)]) for gpus in GPUS)) for long in LONG
        ]
        models.append((model, table("long prompt", hours), table("long prompt", layouts)))
    longest = table("model", [(model, *both(model, _far)) for model in MODELS])
    template = ASSETS / "planning.md.jinja"
    write_page(document, template, folder=RESULTS.name, chart=CHART, longest=longest, models=models, **results.about)


def draw_longest(results: Results, folder: Path) -> None:
    """Plot the longest long prompt by number of GPUs, with a panel per model: ``longest.png``, ``longest-dark.png``."""

    def make(theme: Theme) -> Figure:
        figure, axes = figures.panels(2, 2, height=5.2, width=1.4, titles=list(MODELS), sharex=True)
        for axis, model in zip(axes, MODELS, strict=True):
            for recipe, colour, marker in (("SoLo-DPO", theme.blue, "o"), ("Long-DPO", theme.orange, "s")):
                cells = [c for c in results.runs if (c["model"], c["recipe"]) == (model, recipe) and c["longest"]]
                gpus, long = [cell["gpus"] for cell in cells], [cell["longest"]["long"] for cell in cells]
                axis.plot(gpus, long, marker=marker, color=colour, label=recipe)
            figures.powers_of_two(axis, {gpus: str(gpus) for gpus in GPUS})
            axis.set_yscale("log", base=2)
            axis.yaxis.set_major_formatter(lambda value, _: f"{value / 1024:g}K")
        figure.supxlabel("GPUs of 80 GiB", fontsize=10)
        figure.supylabel("longest long prompt (tokens), predicted", fontsize=10)
        figures.legend(figure, 2, "outside upper center")
        return figure

    figures.draw(folder, CHART.name, make)


def _k(tokens: int) -> str:
    return f"{tokens // 1024}K"


def _far(cell: Cell) -> str:
    return _k(cell["longest"]["long"]) if cell["longest"] else "-"


def _hours(cell: Cell, long: int) -> str:
    plan = cell["plans"][str(long)]
    return f"{plan['epoch_hours']:.1f}" if plan else "-"


def _layout(plan: dict[str, Any] | None) -> str:
    if plan is None:
        return "-"
    layout = plan["layout"]
    names = ("tensor", "TP"), ("context", "CP"), ("pipeline", "PP"), ("data", "DP")
    sizes = " ".join(f"{short}{layout[name]}" for name, short in names if layout[name] > 1)
    return f"{sizes}, {plan['recompute']}, {plan['memory']['peak_gib']:.0f}"
