"""The report's figures: metrics by step and answer accuracy by context length, for light and for dark pages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from solopo_nemo.evaluation.accuracy import AccuracyRow
from solopo_nemo.pages.theme import THEMES, WIDTH, Theme, save_figure, style

Rows = Sequence[Mapping[str, Any]]

_FEW_STEPS = 40
"""Up to here every step gets a dot, and nothing is smoothed."""


@dataclass(frozen=True)
class Line:
    """One metric in a panel."""

    key: str
    label: str
    colour: str


@dataclass(frozen=True)
class Panel:
    """One pair of axes; lines whose key no row has are left out.

    Attributes:
        share: the values lie between 0 and 1.
        noisy: worth a smoothed line.
    """

    ylabel: str
    lines: tuple[Line, ...]
    share: bool = False
    noisy: bool = True


@dataclass(frozen=True)
class Plot:
    """One figure: its panels share the step axis."""

    name: str
    title: str
    note: str
    panels: tuple[Panel, ...]


def _single(ylabel: str, key: str, colour: str, *, share: bool = False, noisy: bool = True) -> Panel:
    return Panel(ylabel, (Line(key, ylabel, colour),), share, noisy)


PLOTS = (
    Plot(
        "loss",
        "Loss and its parts",
        "Preference, alignment and NLL terms before their weights.",
        (
            Panel(
                "loss",
                (
                    Line("loss", "total", "ink"),
                    Line("loss/po", "preference", "blue"),
                    Line("loss/align", "alignment", "green"),
                    Line("loss/nll", "NLL", "purple"),
                ),
            ),
        ),
    ),
    Plot(
        "rewards",
        "Rewards, short and long",
        "The alignment term draws the chosen answer's reward on the long prompt to the one on the short prompt.",
        (
            Panel(
                "reward",
                (
                    Line("rewards/chosen", "chosen", "blue"),
                    Line("rewards/rejected", "rejected", "orange"),
                    Line("rewards/chosen_long", "chosen, long prompt", "green"),
                    Line("rewards/rejected_long", "rejected, long prompt", "purple"),
                ),
            ),
        ),
    ),
    Plot(
        "logps",
        "Log-probabilities of the answers",
        "Summed over the answer, in nats. The chosen answer should not sink while the alignment gap closes.",
        (
            Panel(
                "log-probability (nats)",
                (
                    Line("logps/chosen", "chosen", "blue"),
                    Line("logps/rejected", "rejected", "orange"),
                    Line("logps/chosen_long", "chosen, long prompt", "green"),
                ),
            ),
        ),
    ),
    Plot(
        "margin",
        "Reward margin and accuracy",
        "Accuracy: share of samples whose chosen answer has the higher reward.",
        (
            _single("margin", "rewards/margin", "blue"),
            _single("reward accuracy", "rewards/accuracy", "green", share=True),
        ),
    ),
    Plot(
        "alignment",
        "Alignment between short and long",
        "Gap: mean distance of the two rewards. Signed gap: positive where the short prompt is rewarded more.",
        (_single("gap", "align/gap", "green"), _single("signed gap", "align/signed_gap", "purple")),
    ),
    Plot(
        "optimizer",
        "Learning rate and gradient norm",
        "The norm is the one before clipping.",
        (_single("learning rate", "lr", "blue", noisy=False), _single("gradient norm", "grad_norm", "orange")),
    ),
    Plot(
        "speed",
        "Speed",
        "Tokens of all sequences of a step, over all ranks; the slowest rank's time.",
        (_single("tokens / s", "tokens_per_second", "blue"), _single("step time (s)", "seconds", "orange")),
    ),
    Plot(
        "memory",
        "Peak memory",
        "The largest of all ranks, so far: GPU memory with CUDA, resident memory of the process without.",
        (_single("peak memory (GiB)", "peak_memory_gib", "blue", noisy=False),),
    ),
)


def finite(row: Mapping[str, Any], key: str) -> float:
    """A metric of a row; NaN where it is missing, not a number or infinite."""
    value = row.get(key)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def draw(plot: Plot, rows: Rows, folder: Path) -> bool:
    """Write one plot of the metrics, once a theme.

    Args:
        plot: what to draw.
        rows: the rows of ``metrics.jsonl``.
        folder: where ``<name>.png`` and ``<name>-dark.png`` go.

    Returns:
        Whether there was anything to draw: none of the plot's keys means no file.
    """
    keys = {key for row in rows for key in row}
    panels = [(panel, [line for line in panel.lines if line.key in keys]) for panel in plot.panels]
    panels = [(panel, lines) for panel, lines in panels if lines]
    if not panels:
        return False
    steps = np.array([finite(row, "step") for row in rows])
    for theme in THEMES:
        with mpl.rc_context(style(theme)):
            figure = Figure(figsize=(WIDTH, 1.9 + 1.2 * len(panels)), layout="constrained")
            axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
            axes[0].set_title(plot.title)
            for axis, (panel, lines) in zip(axes, panels, strict=True):
                _draw_panel(axis, panel, lines, steps, rows, theme)
            axes[-1].set_xlabel("step")
            if len(rows) > 1:
                axes[-1].xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True))
            else:
                axes[-1].set_xticks(steps)
            figure.align_ylabels(axes)
            most = max(len(lines) for _, lines in panels)
            if most > 1:
                figure.legend(loc="outside lower center", ncols=2 if most == 4 else 3)
            save_figure(figure, folder / f"{plot.name}{theme.suffix}.png")
    return True


def draw_accuracy(measured: Mapping[str, Sequence[AccuracyRow]], folder: Path) -> bool:
    """Write ``accuracy.png`` and its dark twin: accuracy by context length with 95 % intervals.

    Args:
        measured: rows by moment, ``before`` and ``after``; either may be missing.
        folder: where the files go.
    """
    lengths = {row.length: row for rows in measured.values() for row in rows}
    if not lengths:
        return False
    order = sorted(lengths)
    for theme in THEMES:
        with mpl.rc_context(style(theme)):
            figure = Figure(figsize=(WIDTH, 3.1), layout="constrained")
            axis = figure.subplots()
            axis.set_title("Answer accuracy by context length")
            for moment, shift, colour, marker in (("before", -0.05, "grey", "s"), ("after", 0.05, "blue", "o")):
                rows = sorted(measured.get(moment, ()), key=lambda row: row.length)
                if not rows:
                    continue
                values = np.array([[row.accuracy, row.accuracy - row.low, row.high - row.accuracy] for row in rows])
                axis.errorbar(
                    [order.index(row.length) + shift for row in rows],
                    100 * values[:, 0],
                    yerr=100 * values[:, 1:].T.clip(min=0),
                    label=f"{moment} training",
                    color=getattr(theme, colour),
                    marker=marker,
                    capsize=4,
                )
            axis.set_xticks(range(len(order)), [f"{n}x\n{lengths[n].tokens:,.0f} tokens" for n in order])
            axis.set_xlim(-0.5, len(order) - 0.5)
            axis.set_ylim(-2, 102)
            axis.set_xlabel("context length")
            axis.set_ylabel("exact match (%)")
            figure.legend(loc="outside lower center", ncols=2)
            save_figure(figure, folder / f"accuracy{theme.suffix}.png")
    return True


def _draw_panel(axis: Axes, panel: Panel, lines: list[Line], steps: np.ndarray, rows: Rows, theme: Theme) -> None:
    axis.set_ylabel(panel.ylabel)
    drawn = False
    for line in lines:
        values = np.array([finite(row, line.key) for row in rows])
        drawn |= bool(np.isfinite(values).any())
        colour, label = getattr(theme, line.colour), line.label if len(lines) > 1 else None
        axis.plot(steps, values, color=colour, label=label, marker="o" if len(steps) <= _FEW_STEPS else None)
        if panel.noisy and len(steps) > _FEW_STEPS:
            axis.plot(steps, _smooth(values), color=colour, linewidth=5, alpha=0.25, solid_capstyle="round")
    if panel.share:
        axis.set_ylim(-0.03, 1.03)
    elif any(low < 0 < high for low, high in [axis.get_ylim()]):
        axis.axhline(0, color=theme.muted, linewidth=0.8, zorder=1)
    if not drawn:
        axis.text(0.5, 0.5, "no finite value", transform=axis.transAxes, ha="center", va="center", color=theme.muted)
        axis.set_yticks([])


def smoothing_window(steps: int) -> int:
    """Steps that the pale line averages over; 0 where there are too few to smooth."""
    return 0 if steps <= _FEW_STEPS else 2 * max(2, steps // 50) + 1


def _smooth(values: np.ndarray) -> np.ndarray:
    """Centred running mean over the finite values of a window."""
    window = np.ones(smoothing_window(len(values)))
    known = np.isfinite(values)
    counts = np.convolve(known, window, mode="same")
    sums = np.convolve(np.where(known, values, 0.0), window, mode="same")
    return np.divide(sums, counts, out=np.full(len(values), math.nan), where=known & (counts > 0))
