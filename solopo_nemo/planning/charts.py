"""Plots of plans, for light and for dark pages."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from solopo_nemo.pages.theme import THEMES, WIDTH, Theme, save_figure, style
from solopo_nemo.planning.memory import memory
from solopo_nemo.planning.overview import Overview
from solopo_nemo.planning.workload import Workload

if TYPE_CHECKING:
    from solopo_nemo.config.schema import RunConfig

K = 1024


def draw_overview(config: RunConfig, found: Overview, path: Path) -> None:
    """Peak memory against the length of the long prompt: as configured, and at the fastest layout that fits.

    Args:
        config: names the objective.
        found: what was planned.
        path: PNG to write; the same for dark pages goes beside it, as ``NAME-dark.png``.
    """
    objective = config.build_objective()
    longest = max(found.lengths.long, found.furthest[0] if found.furthest else 0)
    lengths = [K]
    while lengths[-1] < longest:
        lengths.append(lengths[-1] * 2)
    runs = {f"as configured: {found.plan.run.layout}, {found.plan.run.recompute}": found.plan.run}
    for label, plan in (
        ("fastest", found.best[0] if found.best else None),
        ("furthest", found.furthest and found.furthest[1]),
    ):
        if plan:
            runs[f"{label}: {plan.run.layout}, {plan.run.recompute}"] = plan.run
    for theme in THEMES:
        with mpl.rc_context(style(theme)):
            figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
            axes = figure.subplots()
            for (label, run), colour in zip(runs.items(), (theme.blue, theme.orange, theme.green), strict=False):
                peaks = []
                for long in lengths:
                    workload = Workload.of(objective, dataclasses.replace(found.lengths, long=long))
                    peaks.append(memory(dataclasses.replace(run, workload=workload)).gib)
                axes.plot(lengths, peaks, marker="o", color=colour, label=label)
            _budget(axes, found, theme)
            figure.legend(loc="outside lower left", ncols=1)
            save_figure(figure, path.with_name(f"{path.stem}{theme.suffix}.png"))


def _budget(axes: Axes, found: Overview, theme: Theme) -> None:
    budget = found.machine.budget_gib
    axes.axhline(budget, color=theme.ink, linewidth=0.9, linestyle=":")
    axes.set_ylim(0, 2 * budget)
    axes.annotate("usable", (0.01, budget), xycoords=("axes fraction", "data"), va="bottom", color=theme.muted)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / K:g}K")
    axes.set_xlabel("tokens of the long prompt")
    axes.set_ylabel("predicted peak (GiB a GPU)")
    axes.set_title("Memory by context length")


def draw_longest(data: dict[str, Any], folder: Path) -> None:
    """Longest long prompt by number of GPUs, one panel a model: ``longest.png`` and ``longest-dark.png``.

    Args:
        data: of :func:`studies.benchmarks.planning_tables.as_json`.
        folder: where they go.
    """
    models = list(dict.fromkeys(cell["model"] for cell in data["cells"]))
    for theme in THEMES:
        with mpl.rc_context(style(theme)):
            figure = Figure(figsize=(WIDTH * 1.4, 5.2), layout="constrained")
            panels = figure.subplots(2, 2, sharex=True).flatten()
            for axes, model in zip(panels, models, strict=True):
                for recipe, colour, marker in (("SoLo-DPO", theme.blue, "o"), ("Long-DPO", theme.orange, "s")):
                    cells = [c for c in data["cells"] if (c["model"], c["recipe"]) == (model, recipe) and c["longest"]]
                    gpus, long = [c["gpus"] for c in cells], [c["longest"]["long"] for c in cells]
                    axes.plot(gpus, long, marker=marker, color=colour, label=recipe)
                axes.set_xscale("log", base=2)
                axes.set_yscale("log", base=2)
                axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
                axes.yaxis.set_major_formatter(lambda value, _: f"{value / K:g}K")
                axes.set_title(model)
            figure.supxlabel("GPUs of 80 GiB", fontsize=10)
            figure.supylabel("longest long prompt (tokens), predicted", fontsize=10)
            figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
            save_figure(figure, folder / f"longest{theme.suffix}.png")
