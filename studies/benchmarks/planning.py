"""The page ``docs/planning.md``: predictions for SoLoPO and vanilla objectives, for 5 models on 8 to 128 GPUs."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from solopo_nemo.config.schema import load_config
from solopo_nemo.pages import figures as plots
from solopo_nemo.pages.figures import Chart
from solopo_nemo.pages.render import write_page
from solopo_nemo.pages.tables import Table
from solopo_nemo.pages.theme import Theme
from solopo_nemo.planning.layout import Layout
from solopo_nemo.planning.overview import furthest
from solopo_nemo.planning.search import Plan, search
from solopo_nemo.planning.shape import load_shape
from solopo_nemo.planning.step_time import Machine
from solopo_nemo.planning.traced import STEPS
from solopo_nemo.planning.workload import Lengths
from studies.benchmarks import public
from studies.paths import ASSETS, DOCS
from studies.results import Results

DOCUMENT = DOCS / "planning.md"
RESULTS = DOCS / "planning"
MODELS = {
    "Qwen2.5-7B": "qwen2_5_7b",
    "Llama-3.1-8B": "llama3_1_8b",
    "Qwen3-30B-A3B": "qwen3_30b_a3b",
    "Qwen2.5-32B": "qwen2_5_32b",
    "Qwen2.5-72B": "qwen2_5_72b",
}
RECIPES = {"SoLo-DPO": "solo_dpo", "Long-DPO": "long_po"}
GPUS = (8, 16, 32, 64, 128)
GIB = (80, 141)
"""Memory of a GPU: H100 and H200."""
LONG = tuple(2**i * 1024 for i in range(5, 11))
SHORT, RESPONSE, SAMPLES = 1024, 128, 5000
TRACED = "traced_gib"
"""Key of a plan whose peak was traced."""
FORMULAS = "traced_formulas"
"""Key beside it: the :func:`formulas` of the program that traced it."""
CHART = Chart("longest", "Longest long prompt that fits", "")

Cell = dict[str, Any]


def make_cell(model: str, recipe: str, gib: int, gpus: int) -> Cell:
    """The fastest plan at each length and the longest prompt, for a model, a recipe and a number of GPUs."""
    config = load_config(RECIPES[recipe], [f"model={MODELS[model]}"])
    shape, machine = load_shape(config.model.init), Machine(gpus=gpus, memory_gib=gib)
    plans: dict[str, Any] = {}
    for long in LONG:
        found = search(config, shape, Lengths(long, SHORT, RESPONSE), machine)
        plans[str(long)] = _brief(found[0]) if found else None
    far = furthest(config, shape, Lengths(1, SHORT, RESPONSE), machine)
    longest = {"long": far[0], **_brief(far[1])} if far else None
    return {"model": model, "recipe": recipe, "gib": gib, "gpus": gpus, "plans": plans, "longest": longest}


def place(cell: Cell) -> tuple[str, str, int, int]:
    """The arguments of :func:`make_cell` that made a cell."""
    return cell["model"], cell["recipe"], cell["gib"], cell["gpus"]


def _brief(plan: Plan) -> dict[str, Any]:
    """A plan as JSON, without the parts of its peak."""
    values = plan.as_json() | {"epoch_hours": round(plan.hours(SAMPLES), 3)}
    del values["memory"]["parts"]
    return values


def traced_peak(cell: Cell, long: int) -> float:
    """The peak in GiB of a cell's plan, traced (``dry_run=true``) with torch's layers."""
    from solopo_nemo.planning.dry_run.report import trace_layout

    config, plan = load_config(RECIPES[cell["recipe"]], [f"model={MODELS[cell['model']]}"]), cell["plans"][str(long)]
    shape, lengths, layout = load_shape(config.model.init), Lengths(long, SHORT, RESPONSE), Layout(**plan["layout"])
    return round(trace_layout(config, shape, layout, plan["recompute"], lengths, cell["gib"]).peak_gib, 2)


@cache
def formulas() -> str:
    """Hash of the planner's formulas, which are made anew after each change of what a step holds."""
    return hashlib.sha256(STEPS.read_bytes()).hexdigest()[:16]


def _is_traced(plan: dict[str, Any]) -> bool:
    """Whether a plan has a traced peak, of a program with the present formulas."""
    return TRACED in plan and plan.get(FORMULAS) == formulas()


def to_trace(cells: Sequence[Cell]) -> list[tuple[Cell, int]]:
    """The arguments of :func:`traced_peak` for SoLo-DPO's plans without a traced peak, the smallest runs first."""
    found = [
        (cell, long)
        for cell in cells
        for long in LONG
        if cell["recipe"] == "SoLo-DPO" and (plan := cell["plans"][str(long)]) and not _is_traced(plan)
    ]
    return sorted(found, key=lambda item: item[0]["gib"] * item[0]["gpus"] * item[1])


def keep_traces(cells: Sequence[Cell], before: Sequence[Cell]) -> None:
    """Copy traced peaks with the present formulas to the plans of ``cells`` whose layout is that of ``before``."""
    old = {place(cell): cell["plans"] for cell in before}
    for cell in cells:
        for long, plan in cell["plans"].items():
            was = old.get(place(cell), {}).get(long) or {}
            if plan and _is_traced(was) and all(plan[key] == was[key] for key in ("layout", "recompute")):
                plan |= {key: was[key] for key in (TRACED, FORMULAS)}


def all_cells() -> Iterator[tuple[str, str, int, int]]:
    """The arguments of all calls of :func:`make_cell`."""
    return ((model, recipe, gib, gpus) for model in MODELS for gib in GIB for gpus in GPUS for recipe in RECIPES)


def about() -> dict[str, Any]:
    """The settings that all cells share."""
    machine = dataclasses.asdict(Machine()) | {"gpus": None, "memory_gib": None}
    return {"machine": machine, "gib": GIB, "short": SHORT, "response": RESPONSE, "samples": SAMPLES}


def write_document(results: Results, figures: Results, document: Path) -> None:
    """Write the page from the results of all cells, and from the public figures with their predictions."""
    cells = {place(cell): cell for cell in results.runs}

    def both(model: str, gib: int, show: Callable[[Cell], str]) -> list[str]:
        return [" / ".join(show(cells[model, recipe, gib, gpus]) for recipe in RECIPES) for gpus in GPUS]

    def table(first: str, rows: Sequence[Sequence[str]]) -> Table:
        return Table((first, *(f"{gpus} GPUs" for gpus in GPUS)), rows)

    def layouts(model: str, gib: int) -> Table:
        plans = {long: [cells[model, "SoLo-DPO", gib, gpus]["plans"][str(long)] for gpus in GPUS] for long in LONG}
        return table("long prompt", [(_k(long), *map(_layout, row)) for long, row in plans.items()])

    models = []
    for model in MODELS:
        hours = [(_k(long), *both(model, GIB[0], partial(_hours, long=long))) for long in LONG]
        models.append((model, table("long prompt", hours), [(gib, layouts(model, gib)) for gib in GIB]))
    longest = [(gib, table("model", [(model, *both(model, gib, _far)) for model in MODELS])) for gib in GIB]
    traced = [
        plan[TRACED] / plan["memory"]["peak_gib"] - 1
        for cell in results.runs
        for plan in cell["plans"].values()
        if plan and TRACED in plan
    ]
    template = ASSETS / "planning.md.jinja"
    values = {"longest": longest, "models": models, "traced": traced, "public": public.table(figures.runs)}
    write_page(document, template, folder=RESULTS.name, chart=CHART, **values, **results.about, **figures.about)


def draw_longest(results: Results, folder: Path) -> None:
    """Plot the longest long prompt by number of GPUs, with a panel per model: ``longest.png``, ``longest-dark.png``."""

    def make(theme: Theme) -> Figure:
        figure, axes = plots.panels(2, 3, height=5.2, width=1.4, titles=list(MODELS), sharex=True)
        axes.pop().set_axis_off()
        axes[2].xaxis.set_tick_params(labelbottom=True)  # nothing is below it
        for axis, model in zip(axes, MODELS, strict=True):
            for recipe, colour, marker in (("SoLo-DPO", theme.blue, "o"), ("Long-DPO", theme.orange, "s")):
                cells = [c for c in results.runs if place(c)[:3] == (model, recipe, GIB[0]) and c["longest"]]
                gpus, long = [cell["gpus"] for cell in cells], [cell["longest"]["long"] for cell in cells]
                axis.plot(gpus, long, marker=marker, color=colour, label=recipe)
            plots.powers_of_two(axis, {gpus: str(gpus) for gpus in GPUS})
            axis.set_yscale("log", base=2)
            axis.yaxis.set_major_formatter(lambda value, _: f"{value / 1024:g}K")
        figure.supxlabel("GPUs of 80 GiB", fontsize=10)
        figure.supylabel("longest long prompt (tokens), predicted", fontsize=10)
        plots.legend(figure, 2, "outside upper center")
        return figure

    plots.draw(folder, CHART.name, make)


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
    names = {"tensor": "TP", "context": "CP", "pipeline": "PP", "data": "DP", "expert": "EP", "expert_tensor": "ETP"}
    sizes = " ".join(f"{short}{layout[name]}" for name, short in names.items() if layout.get(name, 1) > 1)
    traced = f", traced {plan[TRACED]:.0f}" if TRACED in plan else ""
    return f"{sizes}, {plan['recompute']}, {plan['memory']['peak_gib']:.0f}{traced}"
