"""The page of one evaluation, or of several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from solopo_nemo.evaluation.charts import draw_suite
from solopo_nemo.evaluation.measured import Measured
from solopo_nemo.evaluation.tables import cells, measured_suites, questions, unlike_names
from solopo_nemo.runtime.output import atomic_text
from solopo_nemo.runtime.paths import ASSETS


def write_report(models: Sequence[Measured], folder: Path) -> Path:
    """Write ``index.html`` and its PNGs.

    Args:
        models: one, or several to compare; gains are over the first.
        folder: of the page.

    Returns:
        The page's path.
    """
    names = unlike_names(models)
    for old in folder.glob("*.png"):
        old.unlink()
    suites = []
    for suite, views in measured_suites(models):
        rows = [{"title": view.view.title, "questions": questions(view), "cells": cells(view)} for view in views]
        drawn = draw_suite(suite, models, names, folder)
        suites.append({"title": suite.title, "note": suite.note, "rows": rows, "figures": drawn})
    page = Environment(loader=FileSystemLoader(ASSETS), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    html = page.get_template("evaluation.html.jinja").render(
        models=[
            {"name": name, "folder": str(model.folder), "window": _window(model)}
            for name, model in zip(names, models, strict=True)
        ],
        suites=suites,
    )
    with atomic_text(folder / "index.html") as stream:
        stream.write(html)
    return folder / "index.html"


def _window(model: Measured) -> str:
    window = model.record["window"]
    return "-" if window is None else f"{window:,}"
