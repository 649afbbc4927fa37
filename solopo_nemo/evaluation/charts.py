"""Figures of evaluations: scores by length, by depth and length, and gains over the first model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from solopo_nemo.data.lengths import short_count
from solopo_nemo.evaluation.measured import Measured
from solopo_nemo.evaluation.scores import level
from solopo_nemo.evaluation.suites.suite import Suite
from solopo_nemo.pages.theme import THEMES, WIDTH, Theme, save_figure, style

_COLOURS = ("blue", "orange", "green", "purple", "grey")
_MARKERS = "os^Dv"


def draw_suite(suite: Suite, models: Sequence[Measured], names: Sequence[str], folder: Path) -> list[dict[str, str]]:
    """Write a suite's figures, light and dark.

    Args:
        suite: what was measured.
        models: with or without it.
        names: of the models.
        folder: where the PNGs go.

    Returns:
        ``name``, ``title`` and ``note`` of each figure.
    """
    frames = {
        name: model.suites[suite.name] for name, model in zip(names, models, strict=True) if suite.name in model.suites
    }
    drawn = []
    if suite.curve and max(frame[suite.curve[0]].nunique() for frame in frames.values()) > 1:
        drawn.append(_figure(f"{suite.name}-curve", f"{suite.title} by length", "Bars: 95 % intervals over questions."))
        _draw(folder, drawn[-1]["name"], lambda theme: _curves(suite, frames, theme))
    if suite.heat:
        for number, (name, frame) in enumerate(frames.items()):
            drawn.append(
                _figure(f"{suite.name}-heat-{number}", f"{suite.title}: {name}", f"{name}, by length and depth.")
            )
            _draw(folder, drawn[-1]["name"], lambda theme, name=name, frame=frame: _heat(suite, name, frame, theme))
        first_name, first = next(iter(frames.items()))
        for number, (name, frame) in enumerate(list(frames.items())[1:], start=1):
            note = f"Points that {name} gains over {first_name}."
            drawn.append(_figure(f"{suite.name}-gain-{number}", note, note))
            _draw(
                folder,
                drawn[-1]["name"],
                lambda theme, name=name, frame=frame: _heat(suite, f"{name} less {first_name}", frame, theme, first),
            )
    return drawn


def _figure(name: str, title: str, note: str) -> dict[str, str]:
    return {"name": name, "title": title, "note": note}


def _draw(folder: Path, name: str, make: Any) -> None:
    for theme in THEMES:
        with mpl.rc_context(style(theme)):
            save_figure(make(theme), folder / f"{name}{theme.suffix}.png")


def _curves(suite: Suite, frames: dict[str, pd.DataFrame], theme: Theme) -> Figure:
    """A panel a dataset with a line a model; for one model a single panel with a line a dataset."""
    assert suite.curve is not None
    length, part = suite.curve
    parts = sorted({value for frame in frames.values() for value in frame[part].unique()})
    if len(frames) == 1:
        ((name, frame),) = frames.items()
        panels = {name: {str(value): frame[frame[part] == value] for value in parts}}
    else:
        panels = {str(value): {name: frame[frame[part] == value] for name, frame in frames.items()} for value in parts}
    figure = Figure(figsize=(WIDTH, 1.0 + 2.3 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    ticks = sorted({int(value) for frame in frames.values() for value in frame[length].unique()})
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
        axis.set_title(title)
        for (label, frame), colour, marker in zip(lines.items(), cycle(_COLOURS), cycle(_MARKERS), strict=False):
            _line(axis, frame, length, ticks, label, getattr(theme, colour), marker)
        axis.set_ylim(-3, 103)
        axis.set_ylabel("score")
    axes[-1].set_xticks(range(len(ticks)), [_tick(value) for value in ticks])
    axes[-1].set_xlabel("context length")
    handles, labels = axes[0].get_legend_handles_labels()
    if len(handles) > 1:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(handles)))
    return figure


def _line(axis: Axes, frame: pd.DataFrame, length: str, ticks: list[int], label: str, colour: str, marker: str) -> None:
    points = [
        (ticks.index(int(x)), level([some["value"].to_numpy()], [some["id"].tolist()]))
        for x, some in frame.groupby(length)
    ]
    if not points:
        return
    values = np.array([[one.value, one.value - one.low, one.high - one.value] for _, one in points])
    axis.errorbar(
        [x for x, _ in points],
        100 * values[:, 0],
        yerr=100 * values[:, 1:].T.clip(min=0),
        label=label,
        color=colour,
        marker=marker,
        capsize=3,
    )


def _heat(suite: Suite, title: str, frame: pd.DataFrame, theme: Theme, less: pd.DataFrame | None = None) -> Figure:
    """Score (or gain over ``less``) by the suite's two axes, a panel a setting."""
    assert suite.heat is not None
    across, down, part = suite.heat
    parts = sorted(frame[part].unique())
    figure = Figure(figsize=(WIDTH, 0.9 + 2.4 * len(parts)), layout="constrained")
    axes = figure.subplots(len(parts), 1, sharex=True, squeeze=False)[:, 0]
    figure.suptitle(title, x=0.02, ha="left", fontsize=12, fontweight="bold")
    low, high = (0, 100) if less is None else (-100, 100)
    ends = [theme.background, theme.blue] if less is None else [theme.orange, theme.background, theme.blue]
    colours = LinearSegmentedColormap.from_list("scores", ends)
    for axis, value in zip(axes, parts, strict=True):
        table = _table(frame[frame[part] == value], down, across)
        if less is not None:
            table = table - _table(less[less[part] == value], down, across)
        axis.imshow(table.to_numpy(), cmap=colours, vmin=low, vmax=high, aspect="auto")
        axis.grid(visible=False)
        axis.set_title(str(value), fontsize=10)
        axis.set_xticks(range(len(table.columns)), [_tick(int(x)) for x in table.columns])
        axis.set_yticks(range(len(table.index)), [f"{y} %" for y in table.index])
        axis.set_ylabel(down)
        for row, numbers in enumerate(table.to_numpy()):
            for column, number in enumerate(numbers):
                if np.isfinite(number):
                    strong = abs(number) > 60
                    axis.text(
                        column,
                        row,
                        f"{number:+.0f}" if less is not None else f"{number:.0f}",
                        ha="center",
                        va="center",
                        fontsize=8,
                        color=theme.background if strong else theme.ink,
                    )
    axes[-1].set_xlabel("context length")
    return figure


def _table(frame: pd.DataFrame, down: str, across: str) -> pd.DataFrame:
    return 100 * frame.pivot_table(index=down, columns=across, values="value", aggfunc="mean")


def _tick(value: int) -> str:
    return short_count(value) if value >= 1024 else f"{value}x"
