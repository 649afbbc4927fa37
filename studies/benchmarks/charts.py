"""Plots of the benchmark results, for light and for dark pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from solopo_nemo.pages.theme import THEMES, WIDTH, save_figure, style
from studies.benchmarks.collected import Collected
from studies.benchmarks.results import Run, Spread, peak_gib, step_seconds

K = 1024


@dataclass(frozen=True)
class Curve:
    """One line: its label, colour, marker, and points with their spread by x."""

    label: str
    colour: str
    marker: str
    points: dict[int, Spread]


@dataclass(frozen=True)
class Chart:
    """One plot that has been drawn.

    Attributes:
        name: of its files, ``<name>.png`` and ``<name>-dark.png``.
        title: above the plot.
        note: one sentence under it.
    """

    name: str
    title: str
    note: str


SYSTEMS = {
    "solo_dpo": ("SoLo-DPO", "blue", "o"),
    "long_po": ("Long-DPO, here", "green", "s"),
    "trl_best": ("TRL at its best", "orange", "^"),
    "trl_as_is": ("TRL as it is", "purple", "v"),
}
HEADS = {
    "full": ("full logits", "orange", "^"),
    "chunked": ("every position, in chunks", "green", "s"),
    "response_only": ("response rows only", "blue", "o"),
}
ONE_RANK = ("speed", "as_is", "lengths", "growth")
"""Results of one rank without recompute, which the tables by length show together."""


def by_length(results: Collected, value: Callable[[Run], float], system: str) -> dict[int, Spread]:
    """A system's value by prompt length, over all runs on one rank without recompute."""
    common = {"system": system, "recompute": "none", "context": 1, "tensor": 1}
    found = sorted({run["spec"]["long"] for run in results.select(ONE_RANK, **common)})
    spreads = {long: results.spread(ONE_RANK, value, long=long, **common) for long in found}
    return {long: spread for long, spread in spreads.items() if spread}


def by_context(results: Collected, value: Callable[[Run], float], source: str) -> dict[int, Spread]:
    """A value by context-parallel size."""
    sizes = sorted({run["spec"]["context"] for run in results.select(source, tensor=1)})
    spreads = {size: results.spread(source, value, context=size, tensor=1) for size in sizes}
    return {size: spread for size, spread in spreads.items() if spread}


def head_peaks(results: Collected, head: str) -> dict[int, Spread]:
    """Peak of a head by prompt length."""
    found = sorted({run["spec"]["long"] for run in results.select("head", head=head)})
    spreads = {long: results.spread("head", peak_gib, head=head, long=long) for long in found}
    return {long: spread for long, spread in spreads.items() if spread}


def draw_all(results: Collected, folder: Path) -> list[Chart]:
    """Draw every plot that has data.

    Args:
        results: of a folder.
        folder: where the files go.
    """
    note = "Points are medians, bars the extremes of repeated runs."
    drawn = []
    for name, title, ylabel, value in (
        ("step-seconds", "Seconds of a training step", "seconds", step_seconds),
        ("step-peak", "Peak memory above the loaded model", "GiB", peak_gib),
    ):
        curves = [Curve(*look, by_length(results, value, system)) for system, look in SYSTEMS.items()]
        chart = Chart(name, title, f"One rank, no recompute. {note}")
        if _draw(chart, curves, "tokens of the long prompt", ylabel, folder, log_y=True):
            drawn.append(chart)
    chart = Chart("head-peak", "Memory of the head alone", f"One forward and backward pass. {note}")
    curves = [Curve(*look, head_peaks(results, head)) for head, look in HEADS.items()]
    if _draw(chart, curves, "tokens of the prompt", "GiB", folder, log_y=True):
        drawn.append(chart)
    for name, title, ylabel, value, source in (
        ("context-peak", "Peak of a rank by context-parallel size", "GiB a rank", peak_gib, "scaling_memory"),
        ("context-seconds", "Seconds of a step by context-parallel size", "seconds", step_seconds, "scaling_time"),
    ):
        spreads = by_context(results, value, source)
        lines = [Curve("measured", "blue", "o", spreads)]
        if 1 in spreads:
            ideal = {size: Spread.of([spreads[1].median / size]) for size in spreads}
            lines.append(Curve("one rank's, divided", "grey", "", ideal))
        chart = Chart(name, title, f"SoLo-DPO, one thread a rank. {note}")
        if _draw(chart, lines, "context-parallel ranks", ylabel, folder, log_y=False):
            drawn.append(chart)
    return drawn


def _draw(chart: Chart, curves: Sequence[Curve], xlabel: str, ylabel: str, folder: Path, log_y: bool) -> bool:
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return False
    for theme in THEMES:
        with mpl.rc_context(style(theme)):
            figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
            axis = figure.subplots()
            axis.set_title(chart.title)
            for curve in curves:
                xs = sorted(curve.points)
                spreads = [curve.points[x] for x in xs]
                middle = [s.median for s in spreads]
                errors = [[s.median - s.low for s in spreads], [s.high - s.median for s in spreads]]
                axis.errorbar(
                    xs,
                    middle,
                    yerr=errors if curve.marker else None,
                    label=curve.label,
                    color=getattr(theme, curve.colour),
                    marker=curve.marker or None,
                    linestyle="-" if curve.marker else "--",
                    capsize=3,
                )
            _scale(axis, sorted({x for curve in curves for x in curve.points}), log_y)
            axis.set_xlabel(xlabel)
            axis.set_ylabel(ylabel)
            if len(curves) > 1:
                figure.legend(loc="outside lower center", ncols=2)
            save_figure(figure, folder / f"{chart.name}{theme.suffix}.png")
    return True


def _scale(axis: Axes, xs: Sequence[int], log_y: bool) -> None:
    axis.set_xscale("log", base=2)
    axis.set_xticks(xs, [f"{x // K}K" if x >= K and x % K == 0 else f"{x:,}" for x in xs])
    axis.minorticks_off()
    if log_y:
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
    else:
        axis.set_ylim(bottom=0)
