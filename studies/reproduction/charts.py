"""Plots of the miniature experiments."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from solopo_nemo.pages import figures
from solopo_nemo.pages.figures import Chart, Look
from solopo_nemo.pages.theme import Theme
from studies.reproduction.collected import Collected
from studies.reproduction.methods import ALPHA, OBJECTIVES
from studies.reproduction.runs import BASE
from studies.reproduction.scoring import DEPTHS
from studies.reproduction.statistics import Interval
from studies.reproduction.study import SWEPT, TIMED

LOOKS = {
    "solo": Look("SoLo", "blue", "o"),
    "expand": Look("Expand-Long", "green", "s"),
    "long": Look("Long", "orange", "^"),
    "short": Look("Short", "purple", "v"),
}
INTERVAL = "Bars are 95 % intervals over seeds and questions."
BAND = "Lines are means over the seeds, bands their extremes."
_HEAT = {
    BASE: "starting model",
    "short-orpo": "Short-ORPO",
    "long-orpo": "Long-ORPO",
    "expand-orpo": "Expand-Long-ORPO",
    "solo-orpo": "SoLo-ORPO",
}


def draw_all(results: Collected, folder: Path) -> list[Chart]:
    """Draw every figure that has data.

    Args:
        results: results of all studies.
        folder: output folder.

    Returns:
        The charts.
    """
    drawn = []
    length_note = f"1x is short, 8x is the long training length. {INTERVAL}"
    time_note = (
        "ORPO, the short prompt fixed at 1x; two trainings side by side. "
        "The dashed line is Long-ORPO's time multiplied by the share that the cost model gives SoLo-ORPO."
    )
    time_title = "Seconds of a step by length of the long prompt (Figure 4, right)"
    depth_note = "All seeds together; depth 0 is the beginning of the context."
    for chart, has_data, draw in (
        (Chart("accuracy", "Accuracy by context length", length_note), "main" in results.runs, _accuracy),
        (Chart("alpha", "Weight of the alignment (Figure 4, left)", INTERVAL), "alpha" in results.runs, _alpha),
        (
            Chart("chosen-both", "Chosen-only against both (Figure 10)", f"On short prompts, in training. {BAND}"),
            bool(results.results("main", "solo-orpo-both")),
            _chosen_both,
        ),
        (Chart("run-time", time_title, time_note, width=560), "time" in results.runs, _run_time),
        (
            Chart("depth", "Accuracy by depth of the fact and context length", depth_note),
            all(results.results("main", name) for name in _HEAT),
            _depth,
        ),
    ):
        if has_data:
            figures.draw(folder, chart.name, partial(draw, results))
            drawn.append(chart)
    return drawn


def _points(axis: Axes, theme: Theme, look: Look, xs: Sequence[float], found: Sequence[Interval | None]) -> None:
    """Draw a line through the available points with their intervals, in percent."""
    kept = {x: interval.clipped(0, 1) for x, interval in zip(xs, found, strict=True) if interval}
    figures.points(axis, theme, look, {x: (100 * i.mean, 100 * i.low, 100 * i.high) for x, i in kept.items()})


def _accuracy(results: Collected, theme: Theme) -> Figure:
    lengths = results.lengths()
    figure, axes = figures.panels(1, 3, height=2.9, width=1.6, titles=list(OBJECTIVES.values()), sharey=True)
    for axis, objective in zip(axes, OBJECTIVES, strict=True):
        looks = {BASE: Look("starting model", "grey", ".")}
        looks |= {f"{name}-{objective}": look for name, look in LOOKS.items()}
        for name, look in looks.items():
            _points(axis, theme, look, lengths, [results.accuracy("main", name, [length]) for length in lengths])
        figures.powers_of_two(axis, {length: f"{length}x" for length in lengths})
        axis.set(ylim=(0, 102), xlabel="context length")
    axes[0].set_ylabel("right answers, %")
    figures.legend(figure, 5)
    return figure


def _alpha(results: Collected, theme: Theme) -> Figure:
    titles = [f"SoLo-{OBJECTIVES[objective]}" for objective in SWEPT]
    figure, axes = figures.panels(1, len(SWEPT), height=2.9, width=1.6, titles=titles, sharey=True)
    looks = {1: Look("1x", "grey", "."), 8: Look("8x", "blue", "o"), 16: Look("16x", "orange", "^")}
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
        axis.set(ylim=(0, 102), xlabel="alpha")
    axes[0].set_ylabel("right answers, %")
    figures.legend(figure, 5)
    return figure


def _chosen_both(results: Collected, theme: Theme) -> Figure:
    titles, count = [f"SoLo-{title}" for title in OBJECTIVES.values()], len(OBJECTIVES)
    figure, axes = figures.panels(2, count, height=5.2, width=1.6, titles=titles, sharex=True)
    kinds = {"": Look("chosen-only", "blue"), "-both": Look("both", "orange")}
    for curve, label, row in (
        ("rewards/margin", "reward margin", axes[:count]),
        ("logps/rejected", "log-probability\nof the rejected answer", axes[count:]),
    ):
        for axis, objective in zip(row, OBJECTIVES, strict=True):
            for kind, look in kinds.items():
                if found := results.results("main", f"solo-{objective}{kind}"):
                    figures.band(axis, theme, look, found[0].curves["step"], [run.curves[curve] for run in found])
        row[0].set_ylabel(label)
    for axis in axes[count:]:
        axis.set_xlabel("step")
    figures.legend(figure, 5)
    return figure


def _run_time(results: Collected, theme: Theme) -> Figure:
    figure, (axis,) = figures.panels(1, height=3.4)
    looks = {"expand-orpo": Look("Long-ORPO", "orange", "^"), "solo-orpo": Look("SoLo-ORPO", "blue", "o")}
    found = {name: {long: results.results("time", f"{name}-{long}x") for long in TIMED} for name in looks}
    seconds = {
        name: {long: runs[0].seconds / runs[0].steps for long, runs in by_length.items() if runs}
        for name, by_length in found.items()
    }
    predicted = {
        long: seconds["expand-orpo"][long] * found["solo-orpo"][long][0].flops / found["expand-orpo"][long][0].flops
        for long in seconds["expand-orpo"].keys() & seconds["solo-orpo"].keys()
    }
    for name, look in looks.items():
        figures.points(axis, theme, look, {long: (value,) * 3 for long, value in seconds[name].items()})
    dashed = {long: (value,) * 3 for long, value in sorted(predicted.items())}
    figures.points(axis, theme, Look("predicted SoLo-ORPO", "grey"), dashed)
    figures.powers_of_two(axis, {long: f"{long}x" for long in TIMED})
    axis.set_yscale("log", base=2)
    axis.yaxis.set_major_formatter("{x:g}")
    axis.minorticks_off()
    axis.set(xlabel="length of the long prompt", ylabel="seconds a step")
    figures.legend(figure, 5)
    return figure


def _depth(results: Collected, theme: Theme) -> Figure:
    lengths = results.lengths()
    figure, axes = figures.panels(1, len(_HEAT), height=2.6, width=2.1, titles=list(_HEAT.values()), sharey=True)
    for axis, name in zip(axes, _HEAT, strict=True):
        runs = results.results("main", name)
        counts = np.array([np.sum([run.score(length).depths for run in runs], axis=0) for length in lengths])
        shares = 100 * (counts[..., 0] / counts[..., 1]).T
        image = figures.heat(axis, theme, shares, ("background", "blue"), 0, 100)
        axis.set_xticks(range(len(lengths)), [f"{length}x" for length in lengths])
        depths = [f"{100 * part // DEPTHS}-{100 * (part + 1) // DEPTHS} %" for part in range(DEPTHS)]
        axis.set_yticks(range(DEPTHS), depths)
        axis.set_xlabel("context length")
        axis.title.set_fontsize(10)
    axes[0].set_ylabel("depth of the fact")
    figure.colorbar(image, ax=axes, label="right answers, %")
    return figure
