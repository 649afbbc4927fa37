"""The figures of the study, for light and for dark pages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from solopo_nemo.pages.theme import THEMES, WIDTH, Theme, save_figure, style
from studies.collapse.cells import ALPHAS, FORMS, FREE, GAPS, HIGHER, OBJECTIVES, SHORT, VANILLA
from studies.collapse.choice import choices
from studies.collapse.measured import Replay
from studies.collapse.outcome import pooled
from studies.collapse.rule import by_cell, predicted_safe
from studies.collapse.study import Study

Draw = Callable[[Figure, Study, Theme], None]
ACROSS = 3
"""Replays side by side."""


def draw_all(study: Study, folder: Path) -> list[str]:
    """Write every figure for which there is something to draw; their names, without suffix."""
    drawn = []
    for name, size, draw, wanted in (
        ("collapse-why", (1.5 * WIDTH, 4.6 * -(-len(study.replays) // ACROSS)), _draw_why, bool(study.replays)),
        ("collapse-map", (1.5 * WIDTH, 2.6 * len(FORMS)), _draw_map, bool(study.outcomes)),
        ("collapse-auto", (WIDTH, 4.2), _draw_auto, bool(choices(study.outcomes))),
    ):
        if not wanted:
            continue
        for theme in THEMES:
            with mpl.rc_context(style(theme)):
                figure = Figure(figsize=size, layout="constrained")
                draw(figure, study, theme)
                save_figure(figure, folder / f"{name}{theme.suffix}.png")
        drawn.append(name)
    return drawn


def _draw_why(figure: Figure, study: Study, theme: Theme) -> None:
    """A column a replay, so many to a row: log-probabilities above, pushes below."""
    rows = -(-len(study.replays) // ACROSS)
    axes = figure.subplots(2 * rows, ACROSS, sharex=True, squeeze=False)
    for place, taken in enumerate(study.replays):
        row, column = divmod(place, ACROSS)
        _draw_replay(axes[2 * row][column], axes[2 * row + 1][column], taken, theme)
    for row in range(rows):
        above, below = axes[2 * row], axes[2 * row + 1]
        above[0].set_ylabel("log-probability of\nthe chosen answer (nats)")
        below[0].set_ylabel("push on the short\nprompt's log-probability")
        for shared in (above, below):
            lows, highs = zip(*(axis.get_ylim() for axis in shared), strict=True)
            for axis in shared:
                axis.set_ylim(min(lows), max(highs))
    for place in range(len(study.replays), rows * ACROSS):
        row, column = divmod(place, ACROSS)
        for axis in (axes[2 * row][column], axes[2 * row + 1][column]):
            axis.axis("off")
    lines = {line.get_label(): line for axis in axes.flat for line in axis.get_lines()}
    shown = [line for label, line in lines.items() if not str(label).startswith("_")]
    figure.legend(handles=shown, fontsize=8, loc="outside lower center", ncols=len(shown))


def _draw_replay(above: Axes, below: Axes, taken: Replay, theme: Theme) -> None:
    steps = [v.step for v in taken.velocities]
    above.set_title(f"{OBJECTIVES[taken.objective]}, {FORMS[taken.form].title}, {taken.gap}x", fontsize=10)
    above.plot(steps, [v.short for v in taken.velocities], color=theme.blue, label="short prompt")
    above.plot(steps, [v.long for v in taken.velocities], color=theme.green, label="long prompt")
    below.axhline(0, color=theme.muted, linewidth=0.8)
    parts = [
        ("rest", "push: rest of the loss", theme.muted),
        ("carried", "push: alignment, long side", theme.green),
        ("own", "push: alignment, short side", theme.blue),
    ]
    for name, label, colour in parts:
        if name == "own" and taken.form == SHORT:
            continue
        below.plot(steps, [getattr(v, name) for v in taken.velocities], color=colour, linestyle="--", label=label)
    below.set_yscale("symlog", linthresh=10)
    below.set_xlabel("step")


def _draw_map(figure: Figure, study: Study, theme: Theme) -> None:
    rates = sorted({outcome.cell.rate for outcome in study.outcomes})
    columns = [(gap, rate, alpha) for gap in GAPS for rate in rates for alpha in (VANILLA, *ALPHAS)]
    found = by_cell(study.outcomes)
    colours = LinearSegmentedColormap.from_list("kept", [theme.orange, theme.background, theme.green])
    for axis, (form, names) in zip(figure.subplots(len(FORMS), 1), FORMS.items(), strict=True):
        shown = np.full((len(OBJECTIVES), len(columns)), np.nan)
        for y, objective in enumerate(OBJECTIVES):
            for x, (gap, rate, alpha) in enumerate(columns):
                if outcomes := found.get((objective, form if alpha != VANILLA else FREE, alpha, gap, rate)):
                    short, _, asked = pooled(outcomes)
                    shown[y, x] = 100 * short / asked
                    axis.text(x, y, f"{shown[y, x]:.0f}", ha="center", va="center", fontsize=8, color=theme.ink)
                if alpha != VANILLA and not predicted_safe(objective, form, alpha, study.facts[gap]):
                    corner = (x - 0.42, y - 0.46)  # clear of the line between two blocks
                    axis.add_patch(Rectangle(corner, 0.84, 0.92, fill=False, edgecolor=theme.ink, linewidth=1.2))
        axis.imshow(shown, cmap=colours, vmin=0, vmax=100, aspect="auto", alpha=0.75)
        _name_cells(axis, columns, names.title)


def _name_cells(axis: Axes, columns: list[tuple[int, float, float]], form: str) -> None:
    axis.grid(False)
    axis.set_title(f"{form}: right on short contexts, %", fontsize=10)
    axis.set_yticks(range(len(OBJECTIVES)), list(OBJECTIVES.values()))
    axis.set_xticks(range(len(columns)), [f"{alpha:g}" for _, _, alpha in columns])
    block = 1 + len(ALPHAS)
    for start in range(0, len(columns), block):
        gap, rate, _ = columns[start]
        if start:
            axis.axvline(start - 0.5, color=axis.get_facecolor(), linewidth=4)
        place = start + (block - 1) / 2
        axis.annotate(
            f"alpha; long {gap}x, lr {rate:g}",
            (place, 0),
            (0, -28),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )


def _draw_auto(figure: Figure, study: Study, theme: Theme) -> None:
    axis = figure.subplots()
    made = choices(study.outcomes)
    marks = {FREE: (theme.orange, "^"), SHORT: (theme.blue, "o"), HIGHER: (theme.green, "s")}
    for form, names in FORMS.items():
        own = [choice for choice in made if choice.form == form]
        best = [100 * choice.scores[choice.best] for choice in own]
        auto = [100 * (choice.scores[choice.best] + choice.difference.value) for choice in own]
        half = [100 * choice.difference.half for choice in own]
        colour, marker = marks[form]
        axis.errorbar(best, auto, yerr=half, fmt=marker, color=colour, label=names.title, linewidth=0.8)
    axis.axline((50, 50), slope=1, color=theme.muted, linewidth=0.8)
    axis.set_xlabel("best alpha of the sweep: right, short and long (%)")
    axis.set_ylabel("objective.alpha=auto: right (%)")
    axis.legend()
