"""The figures of the study."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from solopo_nemo.pages import figures
from solopo_nemo.pages.figures import Chart
from solopo_nemo.pages.theme import Theme
from studies.collapse.cells import ALPHAS, AUTO, FORMS, FREE, GAPS, HIGHER, OBJECTIVES, SHORT, VANILLA, by_cell, pooled
from studies.collapse.page import Study
from studies.collapse.rule import choices, predicted_safe
from studies.collapse.start import Replay

ACROSS = 3
"""Replays in a row."""
CHARTS = {
    "why": Chart("collapse-why", "Log-probabilities, and what pushes the short one, step by step", ""),
    "map": Chart(
        "collapse-map", "Right answers on short contexts over objective, alpha, gap and learning rate, each form", ""
    ),
    "auto": Chart("collapse-auto", "Right answers with auto against the best swept alpha", "", width=560),
}


def draw_all(study: Study, folder: Path) -> list[Chart]:
    """Write every figure that has data, and return the charts."""
    drawn = []
    for name, draw, wanted in (
        ("why", _draw_why, study.replays),
        ("map", _draw_map, study.outcomes),
        ("auto", _draw_auto, choices(study.outcomes)),
    ):
        if wanted:
            drawn.append(CHARTS[name])
            figures.draw(folder, CHARTS[name].name, partial(draw, study))
    return drawn


def _draw_why(study: Study, theme: Theme) -> Figure:
    """One column for each replay, three in a row: log-probabilities above, forces below."""
    rows = -(-len(study.replays) // ACROSS)
    figure, axes = figures.panels(2 * rows, ACROSS, height=4.6 * rows, width=1.5, sharex=True)
    for row in range(rows):
        above, below = (axes[(2 * row + place) * ACROSS :][:ACROSS] for place in (0, 1))
        taken = study.replays[ACROSS * row :][:ACROSS]
        for column, one in enumerate(taken):
            _draw_replay(above[column], below[column], one, theme)
        above[0].set_ylabel("log-probability of\nthe chosen answer (nats)")
        below[0].set_ylabel("push on the short\nprompt's log-probability")
        for shared in (above, below):
            lows, highs = zip(*(axis.get_ylim() for axis in shared[: len(taken)]), strict=True)
            for column, axis in enumerate(shared):
                axis.set_ylim(min(lows), max(highs))
                axis.set_axis_on() if column < len(taken) else axis.set_axis_off()
    figures.legend(figure, 5, fontsize=8)
    return figure


def _draw_replay(above: Axes, below: Axes, taken: Replay, theme: Theme) -> None:
    steps = [v.step for v in taken.velocities]
    above.set_title(f"{OBJECTIVES[taken.objective]}, {FORMS[taken.form].title}, {taken.gap}x", fontsize=10)
    above.plot(steps, [v.short for v in taken.velocities], color=theme.blue, label="short prompt")
    above.plot(steps, [v.long for v in taken.velocities], color=theme.green, label="long prompt")
    below.axhline(0, color=theme.muted, linewidth=0.8)
    for name, label, colour in (
        ("rest", "push: rest of the loss", theme.muted),
        ("carried", "push: alignment, long side", theme.green),
        ("own", "push: alignment, short side", theme.blue),
    ):
        if name != "own" or taken.form != SHORT:
            below.plot(steps, [getattr(v, name) for v in taken.velocities], color=colour, linestyle="--", label=label)
    below.set_yscale("symlog", linthresh=10)
    below.set_xlabel("step")


def _draw_map(study: Study, theme: Theme) -> Figure:
    rates = sorted({outcome.cell.rate for outcome in study.outcomes})
    columns = [(gap, rate, alpha) for gap in GAPS for rate in rates for alpha in (VANILLA, *ALPHAS)]
    found = by_cell(study.outcomes)
    figure, axes = figures.panels(len(FORMS), height=2.6 * len(FORMS), width=1.5)
    for axis, (form, names) in zip(axes, FORMS.items(), strict=True):
        shown = np.full((len(OBJECTIVES), len(columns)), np.nan)
        for y, objective in enumerate(OBJECTIVES):
            for x, (gap, rate, alpha) in enumerate(columns):
                if outcomes := found.get((objective, form if alpha != VANILLA else FREE, alpha, gap, rate)):
                    short, _, asked = pooled(outcomes)
                    shown[y, x] = 100 * short / asked
                if alpha != VANILLA and not predicted_safe(objective, form, alpha, study.facts[gap]):
                    corner = (x - 0.42, y - 0.46)  # does not touch the line between two blocks
                    axis.add_patch(Rectangle(corner, 0.84, 0.92, fill=False, edgecolor=theme.ink, linewidth=1.2))
        figures.heat(axis, theme, shown, ("orange", "background", "green"), 0, 100)
        _name_cells(axis, columns, names.title)
    return figure


def _name_cells(axis: Axes, columns: Sequence[tuple[int, float, float]], form: str) -> None:
    axis.set_title(f"{form}: right on short contexts, %", fontsize=10)
    axis.set_yticks(range(len(OBJECTIVES)), list(OBJECTIVES.values()))
    axis.set_xticks(range(len(columns)), [f"{alpha:g}" for _, _, alpha in columns])
    block = 1 + len(ALPHAS)
    for start in range(0, len(columns), block):
        gap, rate, _ = columns[start]
        if start:
            axis.axvline(start - 0.5, color=axis.get_facecolor(), linewidth=4)
        axis.annotate(
            f"alpha; long {gap}x, lr {rate:g}",
            (start + (block - 1) / 2, 0),
            (0, -28),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )


def _draw_auto(study: Study, theme: Theme) -> Figure:
    figure, (axis,) = figures.panels(1, height=4.2)
    looks = {FREE: (theme.orange, "^"), SHORT: (theme.blue, "o"), HIGHER: (theme.green, "s")}
    for form, (colour, marker) in looks.items():
        own = [choice for choice in choices(study.outcomes) if choice.form == form]
        best = [100 * choice.scores[choice.best] for choice in own]
        auto = [100 * choice.scores[AUTO] for choice in own]
        half = [100 * choice.difference.half for choice in own]
        axis.errorbar(best, auto, yerr=half, fmt=marker, color=colour, label=FORMS[form].title, linewidth=0.8)
    axis.axline((50, 50), slope=1, color=theme.muted, linewidth=0.8)
    axis.set_xlabel("best alpha of the sweep: right, short and long (%)")
    axis.set_ylabel("objective.alpha=auto: right (%)")
    axis.legend()
    return figure
