"""The report of a build: its summary as JSON beside the output, and plots where they are asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from solopo_nemo.builders.contexts.settings import BuildSettings
from solopo_nemo.builders.contexts.statistics import POSITION_BINS, BuildStatistics
from solopo_nemo.runtime.output import atomic_text

_INK, _GRID = "#1f2328", "#e4e7eb"
_SHORT, _LONG = "#0969da", "#d9480f"
_STYLE: dict[Any, Any] = {
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "grid.color": _GRID,
    "legend.frameon": False,
}


def write_report(summary: dict[str, Any], statistics: BuildStatistics, settings: BuildSettings) -> None:
    """Write `<out>.report.json`, and into the folder `settings.report` the plots `lengths.png` and `evidence.png`."""
    with atomic_text(settings.out.with_name(f"{settings.out.name}.report.json")) as stream:
        json.dump(summary, stream, indent=2)
        stream.write("\n")
    if settings.report is not None:
        settings.report.mkdir(parents=True, exist_ok=True)
        _draw(statistics, settings.report)


def _draw(statistics: BuildStatistics, folder: Path) -> None:
    # only a run that draws pays for the import
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7, 2.4 * (1 + len(statistics.long))), layout="constrained")
        panels = figure.subplots(1 + len(statistics.long), 1, squeeze=False)[:, 0]
        panels[0].hist(statistics.short.values(), bins=24, color=_SHORT)
        panels[0].set_title(f"Short prompts ({statistics.written:,})")
        for axis, (label, long) in zip(panels[1:], statistics.long.items(), strict=True):
            axis.hist(long.tokens.values(), bins=24, color=_LONG)
            axis.set_title(f"Long prompts, target {label}")
        for axis in panels:
            axis.set_ylabel("questions")
            axis.locator_params(axis="x", nbins=6)
            axis.ticklabel_format(axis="x", style="plain", useOffset=False)
        panels[-1].set_xlabel("tokens, as the chat template renders the prompt")
        figure.savefig(folder / "lengths.png", dpi=150)

        figure = Figure(figsize=(7, 1.6 + 0.4 * len(statistics.long)), layout="constrained")
        axis = figure.subplots()
        edges = np.linspace(0, 1, POSITION_BINS + 1)
        counts = np.array([np.histogram(np.asarray(long.evidence), bins=edges)[0] for long in statistics.long.values()])
        shares = 100 * counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
        darkest = max(300 / POSITION_BINS, shares.max())
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=darkest, aspect="auto")
        for (row, column), share in np.ndenumerate(shares):
            colour = "white" if share > 0.6 * darkest else _INK
            axis.text(column, row, f"{share:.0f}", ha="center", va="center", color=colour)
        axis.set_yticks(range(len(statistics.long)), list(statistics.long))
        axis.set_xticks(np.arange(POSITION_BINS + 1) - 0.5, [f"{edge:.1f}" for edge in edges])
        axis.grid(False)
        axis.set_title("Where the evidence stands (% of supporting passages)")
        axis.set_xlabel("position among the passages, by characters (0 first, 1 last)")
        axis.set_ylabel("long target")
        figure.savefig(folder / "evidence.png", dpi=150)
