"""The report of a build: a JSON summary and optional plots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from solopo_nemo.builders.contexts.settings import BuildSettings
from solopo_nemo.builders.contexts.statistics import POSITION_BINS, BuildStatistics
from solopo_nemo.runtime.json_files import write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from solopo_nemo.pages.theme import Theme

_WIDTH = 1.25


def write_report(summary: dict[str, Any], statistics: BuildStatistics, settings: BuildSettings) -> None:
    """Write `<out>.report.json` and, if `settings.report` is set, `lengths.png` and `evidence.png` in that folder."""
    write_json(settings.out.with_name(f"{settings.out.name}.report.json"), summary)
    if settings.report is not None:
        # import matplotlib only for plots: the import is slow
        import matplotlib as mpl

        from solopo_nemo.pages.theme import THEMES, save_figure, style

        with mpl.rc_context(style(THEMES[0])):
            save_figure(_lengths(statistics, THEMES[0]), settings.report / "lengths.png")
            save_figure(_evidence(statistics, THEMES[0]), settings.report / "evidence.png")


def _lengths(statistics: BuildStatistics, theme: Theme) -> Figure:
    from solopo_nemo.pages.figures import panels

    shown = {f"Short prompts ({statistics.written:,})": (statistics.short, theme.blue)}
    for label, long in statistics.long.items():
        shown[f"Long prompts, target {label}"] = (long, theme.orange)
    figure, axes = panels(len(shown), height=2.4 * len(shown), width=_WIDTH, titles=list(shown))
    for axis, (lengths, colour) in zip(axes, shown.values(), strict=True):
        axis.hist(lengths.values(), bins=24, color=colour)
        axis.set_ylabel("questions")
        axis.locator_params(axis="x", nbins=6)
        axis.ticklabel_format(axis="x", style="plain")
    axes[-1].set_xlabel("tokens, as the chat template renders the prompt")
    return figure


def _evidence(statistics: BuildStatistics, theme: Theme) -> Figure:
    from solopo_nemo.pages.figures import heat, panels

    labels, bins = list(statistics.long), np.linspace(0, 1, POSITION_BINS + 1)
    title = "Positions of the evidence (% of supporting passages)"
    figure, (axis,) = panels(1, height=1.6 + 0.4 * len(labels), width=_WIDTH, titles=[title])
    counts = np.array([np.histogram(np.asarray(found), bins)[0] for found in statistics.evidence.values()])
    shares = 100 * counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    heat(axis, theme, shares, ("background", "blue"), 0, max(300 / POSITION_BINS, shares.max()))
    axis.set_yticks(range(len(labels)), labels)
    axis.set_xticks(np.arange(POSITION_BINS + 1) - 0.5, [f"{edge:.1f}" for edge in bins])
    axis.set_xlabel("position among the passages, by characters (0 first, 1 last)")
    return figure
