"""Evaluation figures: scores by length, scores by length and depth, and gains over the first model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from solopo_nemo.evaluation.measured import Measured
from solopo_nemo.evaluation.scores import level
from solopo_nemo.evaluation.suites.suite import Suite
from solopo_nemo.pages import figures
from solopo_nemo.pages.figures import Chart, Look
from solopo_nemo.pages.theme import Theme
from solopo_nemo.runtime.units import short_count

_COLOURS = ("blue", "orange", "green", "purple", "grey")
_MARKERS = "os^Dv"


def draw_suite(suite: Suite, models: Sequence[Measured], names: Sequence[str], folder: Path) -> list[Chart]:
    """Write the figures of a suite as PNG files.

    Args:
        suite: the suite to draw.
        models: measured models; models without the suite are left out.
        names: display names, one for each model.
        folder: output folder.

    Returns:
        The charts in the order of the page.
    """
    frames = {
        name: model.suites[suite.name] for name, model in zip(names, models, strict=True) if suite.name in model.suites
    }
    drawn = []

    def draw(kind: str, title: str, note: str, make: Callable[[Theme], Figure]) -> None:
        drawn.append(Chart(f"{suite.name}-{kind}", title, note))
        figures.draw(folder, drawn[-1].name, make)

    if suite.curve and max(frame[suite.curve[0]].nunique() for frame in frames.values()) > 1:
        title, note = f"{suite.title} by length", "Bars: 95 % intervals over questions."
        draw("curve", title, note, partial(_curves, suite, frames))
    if suite.heat:
        for number, (name, frame) in enumerate(frames.items()):
            title, note = f"{suite.title}: {name}", f"{name}, by length and depth."
            draw(f"heat-{number}", title, note, partial(_heat, suite, name, frame, None))
        (first, base), *others = frames.items()
        for number, (name, frame) in enumerate(others, start=1):
            note = f"Points that {name} gains over {first}."
            draw(f"gain-{number}", note, note, partial(_heat, suite, f"{name} less {first}", frame, base))
    return drawn


def _curves(suite: Suite, frames: dict[str, pd.DataFrame], theme: Theme) -> Figure:
    """A panel for each dataset with a line for each model. One model gets one panel with a line for each dataset."""
    assert suite.curve is not None
    length, part = suite.curve
    parts = sorted({value for frame in frames.values() for value in frame[part].unique()})
    chosen = {value: {name: frame[frame[part] == value] for name, frame in frames.items()} for value in parts}
    panels = {str(value): lines for value, lines in chosen.items()}
    if len(frames) == 1:
        (name,) = frames
        panels = {name: {str(value): lines[name] for value, lines in chosen.items()}}
    figure, axes = figures.panels(len(panels), height=1.0 + 2.3 * len(panels), titles=list(panels), sharex=True)
    ticks = sorted({int(value) for frame in frames.values() for value in frame[length].unique()})
    for axis, lines in zip(axes, panels.values(), strict=True):
        for (label, frame), colour, marker in zip(lines.items(), cycle(_COLOURS), cycle(_MARKERS), strict=False):
            spans = {
                ticks.index(int(x)): level([some["value"].to_numpy()], [some["id"].tolist()]).percent
                for x, some in frame.groupby(length)
            }
            figures.points(axis, theme, Look(label, colour, marker), spans)
        axis.set(ylim=(-3, 103), ylabel="score")
    axes[-1].set_xticks(range(len(ticks)), [_tick(value) for value in ticks])
    axes[-1].set_xlabel("context length")
    figures.legend(figure, 3)
    return figure


def _heat(suite: Suite, title: str, frame: pd.DataFrame, base: pd.DataFrame | None, theme: Theme) -> Figure:
    """A heat map of the score, or of the gain over ``base``, with a panel for each setting."""
    assert suite.heat is not None
    across, down, part = suite.heat
    parts = sorted(frame[part].unique())
    figure, axes = figures.panels(len(parts), height=0.9 + 2.4 * len(parts), sharex=True)
    figure.suptitle(title, x=0.02, ha="left", fontsize=12, fontweight="bold")
    for axis, value in zip(axes, parts, strict=True):
        table = _table(frame[frame[part] == value], down, across)
        if base is None:
            figures.heat(axis, theme, table.to_numpy(), ("background", "blue"), 0, 100)
        else:
            table = table - _table(base[base[part] == value], down, across)
            figures.heat(axis, theme, table.to_numpy(), ("orange", "background", "blue"), -100, 100, "{:+.0f}")
        axis.set_title(str(value), fontsize=10)
        axis.set_xticks(range(len(table.columns)), [_tick(int(x)) for x in table.columns])
        axis.set_yticks(range(len(table.index)), [f"{y} %" for y in table.index])
        axis.set_ylabel(down)
    axes[-1].set_xlabel("context length")
    return figure


def _table(frame: pd.DataFrame, down: str, across: str) -> pd.DataFrame:
    return 100 * frame.pivot_table(index=down, columns=across, values="value", aggfunc="mean")


def _tick(value: int) -> str:
    return short_count(value) if value >= 1024 else f"{value}x"
