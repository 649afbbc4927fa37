"""Plots of plans."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from solopo_nemo.pages import figures
from solopo_nemo.pages.theme import Theme
from solopo_nemo.planning.memory import memory
from solopo_nemo.planning.overview import Overview
from solopo_nemo.planning.run import Run
from solopo_nemo.planning.workload import Workload

if TYPE_CHECKING:
    from solopo_nemo.config.schema import RunConfig

K = 1024


def draw_overview(config: RunConfig, found: Overview, path: Path) -> None:
    """Plot the predicted peak memory over the length of the long prompt.

    Lines: the configured layout, the fastest layout that fits, and the layout with the longest context.

    Args:
        config: configuration with the objective.
        found: the plan.
        path: PNG to write. The dark version is written next to it, as ``NAME-dark.png``.
    """
    objective = config.build_objective()
    lengths, longest = [K], max(found.lengths.long, found.furthest[0] if found.furthest else 0)
    while lengths[-1] < longest:
        lengths.append(lengths[-1] * 2)
    workloads = [Workload.of(objective, dataclasses.replace(found.lengths, long=long)) for long in lengths]
    plans = {"as configured": found.plan}
    if found.best:
        plans["fastest"] = found.best[0]
    if found.furthest:
        plans["furthest"] = found.furthest[1]

    def peaks(run: Run) -> list[float]:
        return [memory(dataclasses.replace(run, workload=workload)).gib for workload in workloads]

    lines = {f"{label}: {plan.run.layout}, {plan.run.recompute}": peaks(plan.run) for label, plan in plans.items()}

    def make(theme: Theme) -> Figure:
        figure, (axis,) = figures.panels(1, height=3.6, titles=["Memory by context length"])
        for (label, values), colour in zip(lines.items(), ("blue", "orange", "green"), strict=False):
            axis.plot(lengths, values, marker="o", color=getattr(theme, colour), label=label)
        budget = found.machine.budget_gib
        axis.axhline(budget, color=theme.ink, linewidth=0.9, linestyle=":")
        axis.annotate("usable", (0.01, budget), xycoords=("axes fraction", "data"), va="bottom", color=theme.muted)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value / K:g}K")
        axis.set(ylim=(0, 2 * budget), xlabel="tokens of the long prompt", ylabel="predicted peak (GiB a GPU)")
        figure.legend(loc="outside lower left", ncols=1)
        return figure

    figures.draw(path.parent, path.stem, make)
