"""The figures that recur: points with intervals, lines with a band, heat maps; drawn for light and for dark pages."""

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
"""A value and the two ends of its interval."""
BELOW = "outside lower center"


@dataclass(frozen=True)
class Chart:
    """A figure of a page.

    Attributes:
        name: of its files, ``NAME.png`` and ``NAME-dark.png``.
        title: heading and alternative text.
        note: the sentence under it.
        width: on a Markdown page, pixels.
    """

    name: str
    title: str
    note: str
    width: int = 860


@dataclass(frozen=True)
class Look:
    """How a series is drawn: label of the legend, colour of the theme, marker (none: a dashed line)."""

    label: str
    colour: str
    marker: str = ""


def draw(folder: Path, name: str, make: Callable[[Theme], Figure]) -> None:
    """Write ``NAME.png`` and ``NAME-dark.png``.

    Args:
        folder: where they go.
        name: of the figure.
        make: draws it with the colours of a theme.
    """
    for theme in THEMES:
        with mpl.rc_context(style(theme)):
            save_figure(make(theme), folder / f"{name}{theme.suffix}.png")


def panels(
    rows: int, columns: int = 1, *, height: float, width: float = 1.0, titles: Sequence[str] = (), **shared: Any
) -> tuple[Figure, list[Axes]]:
    """An empty figure and its axes, row by row.

    Args:
        rows: of axes.
        columns: of axes.
        height: of the figure, inches.
        width: of the figure, as a multiple of the usual one.
        titles: of the first axes.
        **shared: ``sharex`` and ``sharey`` as matplotlib takes them.
    """
    figure = Figure(figsize=(WIDTH * width, height), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, **shared).flat)
    for axis, title in zip(axes, titles, strict=False):
        axis.set_title(title)
    return figure, axes


def points(axis: Axes, theme: Theme, look: Look, found: Mapping[Any, Span | None], **more: Any) -> None:
    """A line through points with their intervals; missing points are left out.

    Args:
        axis: to draw on.
        theme: gives the colour.
        look: of the series.
        found: by x, the value and the ends of its interval.
        **more: for ``Axes.errorbar``.
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
    """The mean of several runs as a line, and their extremes as a band around it."""
    values, colour = np.array(runs), getattr(theme, look.colour)
    axis.plot(xs, values.mean(0), label=look.label, color=colour)
    axis.fill_between(xs, values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)


def heat(
    axis: Axes, theme: Theme, values: np.ndarray, colours: Sequence[str], low: float, high: float, form: str = "{:.0f}"
) -> Any:
    """A heat map with its numbers.

    Args:
        axis: to draw on.
        theme: gives the colours.
        values: ``[rows, columns]``; NaN leaves a cell empty.
        colours: of the theme, from the lowest to the highest value.
        low: the value of the first colour.
        high: the value of the last colour.
        form: of a number.

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
    """Make the x axis logarithmic, with ticks by value and label."""
    axis.set_xscale("log", base=2)
    axis.set_xticks(list(ticks), list(ticks.values()))
    axis.minorticks_off()


def legend(figure: Figure, columns: int, place: Any = BELOW, **more: Any) -> None:
    """One legend of all axes, each label once; none where there is a single series."""
    entries: dict[str, Any] = {}
    for axis in figure.axes:
        entries |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    if len(entries) > 1:
        figure.legend(entries.values(), entries.keys(), loc=place, ncols=min(columns, len(entries)), **more)
