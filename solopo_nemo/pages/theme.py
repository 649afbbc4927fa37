"""The matplotlib theme of all figures, in a light and a dark version."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

WIDTH, DPI = 5.6, 180
"""Width of a figure in inches, and its resolution in dots per inch."""


@dataclass(frozen=True)
class Theme:
    """Colours for one page background. Colour-blind readers can tell the series colours apart."""

    suffix: str
    background: str
    ink: str
    muted: str
    grid: str
    blue: str
    orange: str
    green: str
    purple: str
    grey: str


THEMES = (
    Theme("", "#ffffff", "#1f2328", "#59636e", "#e4e7eb", "#0969da", "#d9480f", "#12876b", "#8250df", "#8c959f"),
    Theme("-dark", "#161b22", "#e6edf3", "#9198a1", "#2b323b", "#58a6ff", "#ff9248", "#3fcfa4", "#bc8cff", "#8b949e"),
)


def style(theme: Theme) -> dict[Any, Any]:
    """Matplotlib settings of a theme, for ``mpl.rc_context``."""
    return {
        "figure.facecolor": theme.background,
        "axes.facecolor": theme.background,
        "savefig.facecolor": theme.background,
        "text.color": theme.ink,
        "axes.labelcolor": theme.muted,
        "axes.edgecolor": theme.muted,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "axes.titlesize": 12,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 10,
        "axes.labelsize": 10,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": theme.grid,
        "grid.linewidth": 0.8,
        "axes.formatter.useoffset": False,
        "axes.formatter.limits": (-3, 5),
        "axes.formatter.use_mathtext": True,
        "axes.xmargin": 0.02,
        "lines.linewidth": 1.4,
        "lines.markersize": 4,
        "legend.frameon": False,
        "legend.fontsize": 10,
        "figure.constrained_layout.h_pad": 0.08,
        "figure.constrained_layout.w_pad": 0.08,
    }


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG atomically: a concurrent reader sees the old or the new file."""
    box = io.BytesIO()
    figure.savefig(box, format="png", dpi=DPI)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(box.getvalue())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
