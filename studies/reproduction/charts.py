"""Plots of the experiments in miniature, for light and for dark pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from solopo_nemo.pages.theme import THEMES, WIDTH, Theme, save_figure, style
from studies.reproduction.collected import Collected
from studies.reproduction.methods import ALPHA, OBJECTIVES
from studies.reproduction.runs import BASE, Result
from studies.reproduction.scoring import DEPTHS
from studies.reproduction.statistics import Interval
from studies.reproduction.study import SWEPT, TIMED


@dataclass(frozen=True)
class Chart:
    """One figure.

    Attributes:
        name: of its files, ``<name>.png`` and ``<name>-dark.png``.
        title: above it, on the page.
        note: one sentence under it.
        width: on the page, pixels.
    """

    name: str
    title: str
    note: str
    width: int = 860


LOOKS = {
    "solo": ("SoLo", "blue", "o"),
    "expand": ("Expand-Long", "green", "s"),
    "long": ("Long", "orange", "^"),
    "short": ("Short", "purple", "v"),
}
INTERVAL = "Bars are 95 % intervals over seeds and questions."
BAND = "Lines are means over the seeds, bands their extremes."
_HEAT = (BASE, "short-orpo", "long-orpo", "expand-orpo", "solo-orpo")
_HEAT_TITLES = ("starting model", "Short-ORPO", "Long-ORPO", "Expand-Long-ORPO", "SoLo-ORPO")


def draw_all(results: Collected, folder: Path) -> list[Chart]:
    """Draw every figure that has data.

    Args:
        results: of all studies.
        folder: where the files go.
    """
    drawn = []
    for chart, has_data, draw in (
        (
            Chart("accuracy", "Accuracy by context length", f"1x is short, 8x is the long training length. {INTERVAL}"),
            bool(results.runs.get("main")),
            _accuracy,
        ),
        (
            Chart("alpha", "Weight of the alignment (Figure 4, left)", INTERVAL),
            bool(results.runs.get("alpha")),
            _alpha,
        ),
        (
            Chart(
                "chosen-both",
                "Chosen-only against both (Figure 10)",
                f"On short prompts, in training. {BAND}",
            ),
            bool(results.results("main", "solo-orpo-both")),
            _chosen_both,
        ),
        (
            Chart(
                "run-time",
                "Seconds of a step by length of the long prompt (Figure 4, right)",
                "ORPO, the short prompt fixed at 1x; two trainings side by side. "
                "The dashed line is Long-ORPO's time multiplied by the share that the cost model gives SoLo-ORPO.",
                width=560,
            ),
            bool(results.runs.get("time")),
            _run_time,
        ),
        (
            Chart(
                "depth",
                "Accuracy by depth of the fact and context length",
                "All seeds together; depth 0 is the beginning of the context.",
            ),
            all(results.results("main", name) for name in _HEAT),
            _depth,
        ),
    ):
        if has_data:
            _both_themes(chart, folder, results, draw)
            drawn.append(chart)
    return drawn


def _both_themes(chart: Chart, folder: Path, results: Collected, draw: Callable[[Collected, Theme], Figure]) -> None:
    for theme in THEMES:
        with mpl.rc_context(style(theme)):
            save_figure(draw(results, theme), folder / f"{chart.name}{theme.suffix}.png")


def _row(titles: Sequence[str], height: float = 2.9, width: float = 1.6) -> tuple[Figure, list[Axes]]:
    """A row of plots with one y axis."""
    figure = Figure(figsize=(WIDTH * width, height), layout="constrained")
    axes = list(figure.subplots(1, len(titles), sharey=True, squeeze=False)[0])
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title)
    return figure, axes


def _points(
    axis: Axes, theme: Theme, look: tuple[str, str, str], xs: Sequence[float], found: Sequence[Interval | None]
) -> None:
    """A line through the points that there are, with their intervals, in percent."""
    kept = [(x, interval.clipped(0, 1)) for x, interval in zip(xs, found, strict=True) if interval]
    label, colour, marker = look
    if kept:
        middle = np.array([100 * interval.mean for _, interval in kept])
        low = middle - [100 * interval.low for _, interval in kept]
        high = [100 * interval.high for _, interval in kept] - middle
        axis.errorbar(
            [x for x, _ in kept],
            middle,
            yerr=[low, high],
            label=label,
            color=getattr(theme, colour),
            marker=marker,
            capsize=3,
        )


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    entries = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=5)


def _accuracy(results: Collected, theme: Theme) -> Figure:
    lengths = results.lengths()
    figure, axes = _row(list(OBJECTIVES.values()))
    for axis, objective in zip(axes, OBJECTIVES, strict=True):
        base = [results.accuracy("main", BASE, [length]) for length in lengths]
        _points(axis, theme, ("starting model", "grey", "."), lengths, base)
        for name, look in LOOKS.items():
            _points(axis, theme, look, lengths, [results.accuracy("main", f"{name}-{objective}", [n]) for n in lengths])
        axis.set_xscale("log", base=2)
        axis.set_xticks(lengths, [f"{length}x" for length in lengths])
        axis.minorticks_off()
        axis.set_ylim(0, 102)
        axis.set_xlabel("context length")
    axes[0].set_ylabel("right answers, %")
    _legend(figure, axes)
    return figure


def _alpha(results: Collected, theme: Theme) -> Figure:
    figure, axes = _row([f"SoLo-{OBJECTIVES[objective]}" for objective in SWEPT])
    looks = {1: ("1x", "grey", "."), 8: ("8x", "blue", "o"), 16: ("16x", "orange", "^")}
    for axis, (objective, values) in zip(axes, SWEPT.items(), strict=True):
        for length, look in looks.items():
            found = [
                results.accuracy("main", f"solo-{objective}", [length])
                if value == ALPHA[objective]
                else results.accuracy("alpha", f"solo-{objective}-{value:g}", [length])
                for value in values
            ]
            _points(axis, theme, look, values, found)
        axis.set_xscale("log")
        axis.set_xticks(values, [f"{value:g}" for value in values])
        axis.minorticks_off()
        axis.set_ylim(0, 102)
        axis.set_xlabel("alpha")
    axes[0].set_ylabel("right answers, %")
    _legend(figure, axes)
    return figure


def _chosen_both(results: Collected, theme: Theme) -> Figure:
    figure = Figure(figsize=(WIDTH * 1.6, 5.2), layout="constrained")
    grid = figure.subplots(2, len(OBJECTIVES), squeeze=False, sharex=True)
    rows = (("rewards/margin", "reward margin"), ("logps/rejected", "log-probability\nof the rejected answer"))
    kinds = {"": ("chosen-only", "blue"), "-both": ("both", "orange")}
    for (curve, label), axes in zip(rows, grid, strict=True):
        for axis, (objective, title) in zip(axes, OBJECTIVES.items(), strict=True):
            for kind, (name, colour) in kinds.items():
                _band(axis, results.results("main", f"solo-{objective}{kind}"), curve, name, getattr(theme, colour))
            if axis in grid[0]:
                axis.set_title(f"SoLo-{title}")
            else:
                axis.set_xlabel("step")
        axes[0].set_ylabel(label)
    _legend(figure, list(grid.flat))
    return figure


def _band(axis: Axes, found: Sequence[Result], curve: str, label: str, colour: str) -> None:
    if found:
        values = np.array([result.curves[curve] for result in found])
        steps = found[0].curves["step"]
        axis.plot(steps, values.mean(0), label=label, color=colour)
        axis.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)


def _run_time(results: Collected, theme: Theme) -> Figure:
    figure, (axis,) = _row([""], height=3.4, width=1)
    kinds = {"expand-orpo": ("Long-ORPO", "orange", "^"), "solo-orpo": ("SoLo-ORPO", "blue", "o")}
    found = {name: {long: results.results("time", f"{name}-{long}x") for long in TIMED} for name in kinds}
    for name, (label, colour, marker) in kinds.items():
        points = {long: runs[0].seconds / runs[0].steps for long, runs in found[name].items() if runs}
        axis.plot(*zip(*points.items(), strict=True), label=label, color=getattr(theme, colour), marker=marker)
    modelled = {
        long: long_runs[0].seconds / long_runs[0].steps * runs[0].flops / long_runs[0].flops
        for long in TIMED
        if (runs := found["solo-orpo"][long]) and (long_runs := found["expand-orpo"][long])
    }
    axis.plot(*zip(*modelled.items(), strict=True), label="predicted SoLo-ORPO", color=theme.grey, linestyle="--")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    axis.set_xticks(TIMED, [f"{long}x" for long in TIMED])
    axis.yaxis.set_major_formatter("{x:g}")
    axis.minorticks_off()
    axis.set_xlabel("length of the long prompt")
    axis.set_ylabel("seconds a step")
    _legend(figure, [axis])
    return figure


def _depth(results: Collected, theme: Theme) -> Figure:
    lengths = results.lengths()
    figure, axes = _row(_HEAT_TITLES, height=2.6, width=2.1)
    for axis, name in zip(axes, _HEAT, strict=True):
        counts = np.array(
            [
                np.sum([result.score(length).depths for result in results.results("main", name)], axis=0)
                for length in lengths
            ]
        )
        shares = 100 * (counts[..., 0] / counts[..., 1]).T
        image = axis.imshow(shares, vmin=0, vmax=100, cmap="viridis", aspect="auto")
        for (row, column), share in np.ndenumerate(shares):
            axis.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=7, color=_readable(share))
        axis.set_xticks(range(len(lengths)), [f"{length}x" for length in lengths])
        axis.set_yticks(
            range(DEPTHS), [f"{100 * part // DEPTHS}-{100 * (part + 1) // DEPTHS} %" for part in range(DEPTHS)]
        )
        axis.grid(visible=False)
        axis.set_xlabel("context length")
        axis.title.set_fontsize(10)
    axes[0].set_ylabel("depth of the fact")
    figure.colorbar(image, ax=axes, label="right answers, %")
    return figure


def _readable(share: float) -> str:
    return "#ffffff" if share < 60 else "#1f2328"
