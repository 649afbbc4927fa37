"""The report's figures: metrics by step, and answer accuracy by context length."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from solopo_nemo.evaluation.accuracy import AccuracyRow
from solopo_nemo.pages import figures
from solopo_nemo.pages.figures import Chart, Look
from solopo_nemo.pages.theme import Theme

Rows = Sequence[Mapping[str, Any]]

_FEW_STEPS = 40
"""Number of steps up to which a plot shows each step as a dot and no smoothed line."""


@dataclass(frozen=True)
class Panel:
    """One pair of axes. A line whose key no row has is left out.

    Attributes:
        ylabel: label of the y axis.
        lines: label and colour of each line, by the key of its metric.
        share: whether the values are shares between 0 and 1.
        noisy: whether a smoothed line is drawn.
    """

    ylabel: str
    lines: Mapping[str, tuple[str, str]]
    share: bool = False
    noisy: bool = True


def _single(ylabel: str, key: str, colour: str, *, share: bool = False, noisy: bool = True) -> Panel:
    return Panel(ylabel, {key: (ylabel, colour)}, share, noisy)


_LOSS = {
    "loss": ("total", "ink"),
    "loss/po": ("preference", "blue"),
    "loss/align": ("alignment", "green"),
    "loss/nll": ("NLL", "purple"),
}
_REWARDS = {
    "rewards/chosen": ("chosen", "blue"),
    "rewards/rejected": ("rejected", "orange"),
    "rewards/chosen_long": ("chosen, long prompt", "green"),
    "rewards/rejected_long": ("rejected, long prompt", "purple"),
}
_LOGPS = {key.replace("rewards", "logps"): look for key, look in _REWARDS.items() if key != "rewards/rejected_long"}

PLOTS: Mapping[Chart, tuple[Panel, ...]] = {
    Chart("loss", "Loss and its parts", "Preference, alignment and NLL terms before their weights."): (
        Panel("loss", _LOSS),
    ),
    Chart(
        "rewards",
        "Rewards, short and long",
        "The alignment term moves the chosen answer's reward on the long prompt towards the one on the short prompt.",
    ): (Panel("reward", _REWARDS),),
    Chart(
        "logps",
        "Log-probabilities of the answers",
        "Summed over the answer, in nats. The chosen answer should not fall while the alignment gap closes.",
    ): (Panel("log-probability (nats)", _LOGPS),),
    Chart(
        "margin",
        "Reward margin and accuracy",
        "Accuracy: share of samples whose chosen answer has the higher reward.",
    ): (
        _single("margin", "rewards/margin", "blue"),
        _single("reward accuracy", "rewards/accuracy", "green", share=True),
    ),
    Chart(
        "alignment",
        "Alignment between short and long",
        "Gap: mean distance of the two rewards. Signed gap: positive where the short prompt has the higher reward.",
    ): (_single("gap", "align/gap", "green"), _single("signed gap", "align/signed_gap", "purple")),
    Chart(
        "experts",
        "Load of the experts",
        "Tokens of the busiest expert of any layer, as a multiple of the mean. The losses are before their weights.",
    ): (
        _single("busiest expert", "moe/busiest_expert", "blue"),
        Panel("loss", {"moe/aux_loss": ("load balancing", "orange"), "moe/z_loss": ("z-loss", "purple")}),
    ),
    Chart("optimizer", "Learning rate and gradient norm", "The norm before clipping."): (
        _single("learning rate", "lr", "blue", noisy=False),
        _single("gradient norm", "grad_norm", "orange"),
    ),
    Chart("speed", "Speed", "Tokens of all sequences of a step, over all ranks; the time of the slowest rank."): (
        _single("tokens / s", "tokens_per_second", "blue"),
        _single("step time (s)", "seconds", "orange"),
    ),
    Chart(
        "memory",
        "Peak memory",
        "The largest of all ranks so far: GPU memory with CUDA, resident memory of the process without.",
    ): (_single("peak memory (GiB)", "peak_memory_gib", "blue", noisy=False),),
}
ACCURACY = Chart(
    "accuracy",
    "Answer accuracy by context length",
    "Share of questions answered exactly, with the 95 % Wilson interval.",
)


def finite(row: Mapping[str, Any], key: str) -> float:
    """A metric of a row; NaN where it is missing, not a number or infinite."""
    value = row.get(key)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def draw_metrics(rows: Rows, folder: Path) -> list[Chart]:
    """Draws the plots whose metrics were recorded.

    Args:
        rows: the rows of ``metrics.jsonl``.
        folder: folder of the files ``<name>.png`` and ``<name>-dark.png``.

    Returns:
        The plots that were drawn.
    """
    keys, drawn = {key for row in rows for key in row}, []
    for chart, panels in PLOTS.items():
        there = [panel for panel in panels if keys & panel.lines.keys()]
        if there:
            figures.draw(folder, chart.name, partial(_draw_plot, chart.title, there, rows, keys))
            drawn.append(chart)
    return drawn


def _draw_plot(title: str, panels: Sequence[Panel], rows: Rows, keys: set[str], theme: Theme) -> Figure:
    steps = np.array([finite(row, "step") for row in rows])
    figure, axes = figures.panels(len(panels), height=1.9 + 1.2 * len(panels), titles=[title], sharex=True)
    for axis, panel in zip(axes, panels, strict=True):
        _draw_panel(axis, panel, [key for key in panel.lines if key in keys], steps, rows, theme)
    axes[-1].set_xlabel("step")
    if len(rows) > 1:
        axes[-1].xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True))
    else:
        axes[-1].set_xticks(steps)
    figure.align_ylabels(axes)
    figures.legend(figure, 2 if len(panels[0].lines) == 4 else 3)
    return figure


def draw_accuracy(measured: Mapping[str, Sequence[AccuracyRow]], folder: Path) -> list[Chart]:
    """Draws the accuracy by context length with 95 % intervals.

    Args:
        measured: rows by moment, ``before`` and ``after``; either may be missing.
        folder: folder of the files.
    """
    if not any(measured.values()):
        return []
    figures.draw(folder, ACCURACY.name, partial(_draw_accuracy, measured))
    return [ACCURACY]


def _draw_accuracy(measured: Mapping[str, Sequence[AccuracyRow]], theme: Theme) -> Figure:
    tokens = dict(sorted((row.length, row.tokens) for rows in measured.values() for row in rows))
    order = list(tokens)
    figure, (axis,) = figures.panels(1, height=3.1, titles=[ACCURACY.title])
    for moment, shift, colour, marker in (("before", -0.05, "grey", "s"), ("after", 0.05, "blue", "o")):
        spans = {
            order.index(row.length) + shift: (100 * row.accuracy, 100 * row.low, 100 * row.high)
            for row in sorted(measured.get(moment, ()), key=lambda row: row.length)
        }
        figures.points(axis, theme, Look(f"{moment} training", colour, marker), spans, capsize=4)
    axis.set_xticks(range(len(order)), [f"{length}x\n{count:,.0f} tokens" for length, count in tokens.items()])
    axis.set(xlim=(-0.5, len(order) - 0.5), ylim=(-2, 102), xlabel="context length", ylabel="exact match (%)")
    figures.legend(figure, 2)
    return figure


def _draw_panel(axis: Axes, panel: Panel, keys: list[str], steps: np.ndarray, rows: Rows, theme: Theme) -> None:
    axis.set_ylabel(panel.ylabel)
    drawn = False
    for key in keys:
        values, (label, colour) = np.array([finite(row, key) for row in rows]), panel.lines[key]
        drawn |= bool(np.isfinite(values).any())
        look: dict[str, Any] = {"color": getattr(theme, colour), "label": label if len(keys) > 1 else None}
        axis.plot(steps, values, marker="o" if len(steps) <= _FEW_STEPS else None, **look)
        if panel.noisy and len(steps) > _FEW_STEPS:
            axis.plot(steps, _smooth(values), color=look["color"], linewidth=5, alpha=0.25, solid_capstyle="round")
    if panel.share:
        axis.set_ylim(-0.03, 1.03)
    elif any(low < 0 < high for low, high in [axis.get_ylim()]):
        axis.axhline(0, color=theme.muted, linewidth=0.8, zorder=1)
    if not drawn:
        axis.text(0.5, 0.5, "no finite value", transform=axis.transAxes, ha="center", va="center", color=theme.muted)
        axis.set_yticks([])


def smoothing_window(steps: int) -> int:
    """Number of steps of the running mean; 0 if there are too few steps to smooth."""
    return 0 if steps <= _FEW_STEPS else 2 * max(2, steps // 50) + 1


def _smooth(values: np.ndarray) -> np.ndarray:
    """The centred running mean, over the finite values of each window."""
    window = np.ones(smoothing_window(len(values)))
    known = np.isfinite(values)
    counts = np.convolve(known, window, mode="same")
    sums = np.convolve(np.where(known, values, 0.0), window, mode="same")
    return np.divide(sums, counts, out=np.full(len(values), math.nan), where=known & (counts > 0))
