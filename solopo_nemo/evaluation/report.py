"""The HTML page of one evaluation or of several compared evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from solopo_nemo.evaluation.charts import draw_suite
from solopo_nemo.evaluation.measured import Measured
from solopo_nemo.evaluation.tables import measured_suites, suite_table, unlike_names
from solopo_nemo.pages.render import write_page
from solopo_nemo.pages.tables import Table
from solopo_nemo.runtime.paths import ASSETS


def write_report(models: Sequence[Measured], folder: Path, notes: Sequence[str] = ()) -> Path:
    """Write ``index.html`` and its PNG files. PNG files of an earlier page in the folder are removed.

    Args:
        models: the models to show; gains are relative to the first.
        folder: output folder.
        notes: lines on what differs besides the models.

    Returns:
        The path of the page.
    """
    names = unlike_names(models)
    for old in folder.glob("*.png"):
        old.unlink()
    suites = [
        {
            "title": suite.title,
            "note": suite.note,
            "table": suite_table(suite, views, names),
            "figures": draw_suite(suite, models, names, folder),
        }
        for suite, views in measured_suites(models)
    ]
    windows = ["-" if model.record["window"] is None else f"{model.record['window']:,}" for model in models]
    rows = list(zip(names, windows, [str(model.folder) for model in models], strict=True))
    models_table = Table(("model", "window", "scores in"), rows)
    template = ASSETS / "evaluation.html.jinja"
    return write_page(folder / "index.html", template, names=names, table=models_table, suites=suites, notes=notes)
