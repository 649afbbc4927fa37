"""Plots of the benchmark results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from solopo_nemo.pages import figures
from solopo_nemo.pages.figures import Chart, Look
from solopo_nemo.pages.theme import Theme
from studies.benchmarks.results import Collected, Spread, peak_gib, step_seconds
from studies.results import Run

K = 1024
SYSTEMS = {
    "solo_dpo": Look("SoLo-DPO", "blue", "o"),
    "long_po": Look("Long-DPO, here", "green", "s"),
    "trl_best": Look("TRL at its best", "orange", "^"),
    "trl_as_is": Look("TRL as it is", "purple", "v"),
}
ADAPTERS = {
    "solo_dpo": "SoLo-DPO, all weights",
    "solo_dpo+lora": "SoLo-DPO, LoRA, cached reference",
    "solo_dpo+lora_off": "SoLo-DPO, LoRA, adapters off",
    "trl_best+lora": "TRL, LoRA, reference before training",
    "trl_best+lora_off": "TRL, LoRA, adapters off",
}
HEADS = {
    "full": Look("full logits", "orange", "^"),
    "chunked": Look("every position, in chunks", "green", "s"),
    "response_only": Look("response rows only", "blue", "o"),
}
ONE_RANK = ("speed", "as_is", "lengths", "growth")
"""Result files on one rank without recompute, which the tables by length combine."""

Series = Mapping[Look, Mapping[int, Spread]]


def by_length(results: Collected, value: Callable[[Run], float], system: str) -> dict[int, Spread]:
    """Prompt length -> value of a system, over all runs on one rank without recompute."""
    return results.spreads(ONE_RANK, value, "long", system=system, recompute="none", context=1, tensor=1)


def head_peaks(results: Collected, head: str) -> dict[int, Spread]:
    """Prompt length -> peak memory of a head in GiB."""
    return results.spreads("head", peak_gib, "long", head=head)


def draw_all(results: Collected, folder: Path) -> list[Chart]:
    """Draw every plot that has data.

    Args:
        results: results of a folder.
        folder: output folder.

    Returns:
        The charts.
    """
    drawn = []

    def draw(name: str, title: str, note: str, labels: tuple[str, str], series: Series, log_y: bool) -> None:
        there = {look: spreads for look, spreads in series.items() if spreads}
        if there:
            drawn.append(Chart(name, title, f"{note} Points are medians, bars the extremes of repeated runs.", 640))
            figures.draw(folder, name, partial(_draw, title, labels, there, log_y))

    for name, title, ylabel, value in (
        ("step-seconds", "Seconds of a training step", "seconds", step_seconds),
        ("step-peak", "Peak memory above the loaded model", "GiB", peak_gib),
    ):
        series = {look: by_length(results, value, system) for system, look in SYSTEMS.items()}
        draw(name, title, "One rank, no recompute.", ("tokens of the long prompt", ylabel), series, log_y=True)
    heads = {look: head_peaks(results, head) for head, look in HEADS.items()}
    labels = ("tokens of the prompt", "GiB")
    draw("head-peak", "Memory of the head alone", "One forward and backward pass.", labels, heads, log_y=True)
    for name, title, ylabel, value, source in (
        ("context-peak", "Peak of a rank by context-parallel size", "GiB a rank", peak_gib, "scaling_memory"),
        ("context-seconds", "Seconds of a step by context-parallel size", "seconds", step_seconds, "scaling_time"),
    ):
        measured = results.spreads(source, value, "context", tensor=1)
        lines = {Look("measured", "blue", "o"): measured}
        if 1 in measured:
            ideal = {size: Spread.of([measured[1].median / size]) for size in measured}
            lines[Look("one rank's, divided", "grey")] = ideal
        labels = ("context-parallel ranks", ylabel)
        draw(name, title, "SoLo-DPO, one thread a rank.", labels, lines, log_y=False)
    return drawn


def _draw(title: str, labels: tuple[str, str], series: Series, log_y: bool, theme: Theme) -> Figure:
    figure, (axis,) = figures.panels(1, height=3.4, titles=[title])
    for look, spreads in series.items():
        figures.points(axis, theme, look, {x: (s.median, s.low, s.high) for x, s in spreads.items()})
    xs = sorted({x for spreads in series.values() for x in spreads})
    figures.powers_of_two(axis, {x: f"{x // K}K" if x >= K and x % K == 0 else f"{x:,}" for x in xs})
    if log_y:
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
    else:
        axis.set_ylim(bottom=0)
    axis.set(xlabel=labels[0], ylabel=labels[1])
    figures.legend(figure, 2)
    return figure
