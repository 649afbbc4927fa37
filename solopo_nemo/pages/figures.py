"""Plot helpers: points with intervals, lines with a band, and heat maps, in a light and a dark version."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from solopo_nemo.pages.theme import THEMES, WIDTH, Theme, save_figure, style

Span = tuple[float, float, float]
"""A value, and the lower and upper end of its interval."""
BELOW = "outside lower center"


@dataclass(frozen=True)
class Chart:
    """A figure on a page.

    Attributes:
        name: stem of its files, ``NAME.png`` and ``NAME-dark.png``.
        title: heading and alternative text.
        note: caption.
        width: width on a Markdown page, in pixels.
    """

    name: str
    title: str
    note: str
    width: int = 860


@dataclass(frozen=True)
class Look:
    """Style of a series: legend label, name of a theme colour, and marker. Without a marker the line is dashed."""

    label: str
    colour: str
    marker: str = ""


def draw(folder: Path, name: str, make: Callable[[Theme], Figure]) -> None:
    """Write ``NAME.png`` and ``NAME-dark.png``.

    Args:
        folder: output folder.
        name: stem of the files.
        make: draws the figure with the colours of a theme.
    """
    for theme in THEMES:
        with mpl.rc_context(style(theme)):
            save_figure(make(theme), folder / f"{name}{theme.suffix}.png")


def panels(
    rows: int, columns: int = 1, *, height: float, width: float = 1.0, titles: Sequence[str] = (), **shared: Any
) -> tuple[Figure, list[Axes]]:
    """An empty figure and its axes in row-major order.

    Args:
        rows: rows of axes.
        columns: columns of axes.
        height: height of the figure in inches.
        width: width of the figure as a multiple of :data:`~solopo_nemo.pages.theme.WIDTH`.
        titles: titles of the axes; there may be fewer titles than axes.
        **shared: ``sharex`` and ``sharey`` of ``Figure.subplots``.
    """
    figure = Figure(figsize=(WIDTH * width, height), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, **shared).flat)
    for axis, title in zip(axes, titles, strict=False):
        axis.set_title(title)
    return figure, axes


def points(axis: Axes, theme: Theme, look: Look, found: Mapping[Any, Span | None], **more: Any) -> None:
    """Draw a line through points, with an error bar at each point.

    Args:
        axis: axes to draw on.
        theme: provides the colour.
        look: style of the series.
        found: x to value and interval; None entries are skipped.
        **more: keyword arguments of ``Axes.errorbar``.
    """
    known = {x: span for x, span in found.items() if span is not None}
    if not known:
        return
    middle, low, high = np.array(list(known.values()), dtype=float).T
    bars = np.clip([middle - low, high - middle], 0, None)
    axis.errorbar(
        list(known),
        middle,
        yerr=bars if bars.any() else None,
        label=look.label,
        color=getattr(theme, look.colour),
        marker=look.marker or None,
        **{"linestyle": "-" if look.marker else "--", "capsize": 3, **more},
    )


def band(axis: Axes, theme: Theme, look: Look, xs: Sequence[float], runs: Sequence[Sequence[float]]) -> None:
    """Draw the mean of several runs as a line, and their minimum and maximum as a band.

    Args:
        axis: axes to draw on.
        theme: provides the colour.
        look: style of the series.
        xs: x values, ``[points]``.
        runs: y values, ``[runs, points]``.
    """
    values, colour = np.array(runs), getattr(theme, look.colour)
    axis.plot(xs, values.mean(0), label=look.label, color=colour)
    axis.fill_between(xs, values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)


def heat(
    axis: Axes, theme: Theme, values: np.ndarray, colours: Sequence[str], low: float, high: float, form: str = "{:.0f}"
) -> Any:
    """Draw a heat map with its values as text.

    Args:
        axis: axes to draw on.
        theme: provides the colours.
        values: ``[rows, columns]``; a NaN cell stays empty.
        colours: names of theme colours, from the lowest to the highest value.
        low: value of the first colour.
        high: value of the last colour.
        form: format string of a value.

    Returns:
        The image, for a colour bar.
    """
    scale = LinearSegmentedColormap.from_list("heat", [getattr(theme, colour) for colour in colours])
    image = axis.imshow(values, cmap=scale, vmin=low, vmax=high, aspect="auto")
    axis.grid(visible=False)
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            light = np.dot(image.to_rgba(np.array([value]))[0, :3], (0.3, 0.59, 0.11)) > 0.5
            ink = THEMES[0].ink if light else THEMES[0].background
            axis.text(column, row, form.format(value), ha="center", va="center", fontsize=8, color=ink)
    return image


def powers_of_two(axis: Axes, ticks: Mapping[int, str]) -> None:
    """Make the x axis logarithmic to base 2. ``ticks`` maps values to labels."""
    axis.set_xscale("log", base=2)
    axis.set_xticks(list(ticks), list(ticks.values()))
    axis.minorticks_off()


def legend(figure: Figure, columns: int, place: Any = BELOW, **more: Any) -> None:
    """Add one legend for all axes, with each label once. A single series gets no legend."""
    entries: dict[str, Any] = {}
    for axis in figure.axes:
        entries |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    if len(entries) > 1:
        figure.legend(entries.values(), entries.keys(), loc=place, ncols=min(columns, len(entries)), **more)
