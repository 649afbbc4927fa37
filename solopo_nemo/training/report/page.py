"""The report of a run: its plots and one static page around them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from markupsafe import Markup
from omegaconf import OmegaConf

from solopo_nemo.config.schema import RunConfig
from solopo_nemo.config.world import own_world
from solopo_nemo.data.prepared import load_prepared
from solopo_nemo.data.shown import ShownSequence, shown_sequences
from solopo_nemo.data.tokenizer_files import load_tokenizer
from solopo_nemo.evaluation.accuracy import AccuracyRow
from solopo_nemo.pages.render import write_page
from solopo_nemo.pages.tables import Table
from solopo_nemo.planning.layout import Layout
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.paths import ASSETS
from solopo_nemo.training.checkpoints.selection import Selection
from solopo_nemo.training.paths import Paths
from solopo_nemo.training.report.plots import draw_accuracy, draw_metrics, finite, smoothing_window
from solopo_nemo.training.report.rows import read_metrics

_LAST = 10
_NOT_METRICS = ("step", "epoch", "tokens_per_second")


def write_report(config: RunConfig) -> None:
    """Writes ``report/index.html`` and its PNGs from the files of a run's output folder.

    A metric that ``metrics.jsonl`` lacks has no plot, and a run without ``accuracy.json`` has no accuracy table. The
    page is written last, so that an existing page has all its plots.
    """
    paths = Paths(config.output)
    rows = [_with_speed(row) for row in read_metrics(paths.metrics)]
    measured = _read_accuracy(paths.accuracy)
    figures = draw_accuracy(measured, paths.report) + draw_metrics(rows, paths.report)
    _remove_stale(paths.report, {figure.name for figure in figures})
    write_page(
        paths.report / "index.html",
        ASSETS / "report.html.jinja",
        config=config,
        facts=_facts(config, rows),
        settings={
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in config.objective.items()
            if key != "name"
        },
        metrics=_metrics_table(rows),
        accuracy=_accuracy_table(measured),
        selection=_selection_table(config),
        suite=config.trainer.select_best,
        figures=figures,
        window=smoothing_window(len(rows)),
        sample=_sample(config),
        folders=[path.name for path in (paths.hf_adapter, paths.hf) if path.is_dir()] or [paths.hf.name],
        broken=_broken(rows),
        yaml=OmegaConf.to_yaml(OmegaConf.structured(config)),
    )


def _sample(config: RunConfig) -> tuple[str, list[ShownSequence]] | None:
    """The id of the first training sample and its sequences; None if the folder has no data or no tokenizer."""
    paths = Paths(config.output)
    with suppress(UserError):
        sample = load_prepared(paths.tokenized).dataset[0]
        tokenizer = load_tokenizer(paths.initial / "hf")
        return sample["id"], list(shown_sequences(tokenizer, sample, config.build_objective().sequences))
    return None


def _with_speed(row: dict[str, Any]) -> dict[str, Any]:
    tokens, seconds = finite(row, "tokens"), finite(row, "seconds")
    return row | {"tokens_per_second": tokens / seconds} if tokens >= 0 and seconds > 0 else row


def _read_accuracy(path: Path) -> dict[str, list[AccuracyRow]]:
    if not path.is_file():
        return {}
    return {moment: [AccuracyRow(**row) for row in rows] for moment, rows in json.loads(path.read_text()).items()}


def _remove_stale(folder: Path, names: set[str]) -> None:
    """Removes the plots of an earlier report that this one does not have."""
    for path in folder.glob("*.png"):
        if path.stem.removesuffix("-dark") not in names:
            path.unlink()


def _facts(config: RunConfig, rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The table of the run's main facts, as pairs of name and value."""
    trainer, layout = config.trainer, Layout.of(config.parallel, own_world(config))
    facts = [
        ("Recipe", config.recipe),
        ("Objective", str(config.objective["name"])),
        ("Model", config.model.init),
        ("Data", config.data.train),
        ("Layout", f"{layout}, {layout.world} rank{'s' * (layout.world > 1)}"),
    ]
    alpha = Paths(config.output).alpha
    if config.auto_alpha and alpha.is_file():
        facts.append(("Alpha", f"{json.loads(alpha.read_text())['alpha']:g}, chosen by the run"))
    if config.peft.on:
        facts.append(("Adapters", config.peft.words))
    if config.plugins:
        facts.append(("Plugins", ", ".join(config.plugins)))
    if not rows:
        return facts
    steps, epoch = finite(rows[-1], "step"), finite(rows[-1], "epoch")
    seen = steps * trainer.global_batch
    if math.isfinite(steps):
        facts.append(("Steps", f"{steps:,.0f}, {trainer.global_batch} samples each"))
        of = f", {epoch:.3g} epochs of {seen / epoch:,.0f}" if epoch > 0 else ""
        facts.append(("Samples", f"{seen:,.0f}{of}"))
    tokens, seconds = ([finite(row, key) for row in rows] for key in ("tokens", "seconds"))
    facts += [
        ("Tokens", f"{sum(t for t in tokens if t >= 0):,.0f}"),
        ("Time in steps", _duration(sum(s for s in seconds if s >= 0))),
    ]
    return facts


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % 60} s"


def _metrics_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The table of metrics: first step, last step, and mean over the last ten steps."""
    head = ["metric", "first step", "last step"] + [f"mean of the last {_LAST}"] * (len(rows) > _LAST)
    table = []
    for key in dict.fromkeys(key for row in rows for key in row if key not in _NOT_METRICS):
        values = (rows[0].get(key), rows[-1].get(key), _mean([row.get(key) for row in rows[-_LAST:]]))
        table.append([Markup("<code>{}</code>").format(key), *map(_number, values)][: len(head)])
    return Table(head, table)


def _mean(values: Sequence[Any]) -> float | None:
    numbers = [value for value in values if isinstance(value, int | float)]
    return sum(numbers) / len(numbers) if numbers else None


def _number(value: Any) -> str:
    if not isinstance(value, int | float):
        return "-"
    return f"{value:,.0f}" if isinstance(value, int) or 1e4 <= abs(value) < 1e12 else f"{value:.4g}"


def _accuracy_table(measured: Mapping[str, Sequence[AccuracyRow]]) -> Table:
    before, after = ({row.length: row for row in measured.get(moment, ())} for moment in ("before", "after"))
    rows = []
    for length in sorted(before.keys() | after.keys()):
        old, new = before.get(length), after.get(length)
        some = new or old
        assert some is not None
        change = f"{100 * (new.accuracy - old.accuracy):+.1f}" if new and old else "-"
        rows.append((f"{length}x", f"{some.tokens:,.0f}", f"{some.total:,}", _share(old), _share(new), change))
    return Table(("context", "tokens", "questions", "before", "after", "change"), rows, wide=(1, 2))


def _selection_table(config: RunConfig) -> Table | None:
    """The table of scored checkpoints; None without ``trainer.select_best``."""
    selection = Selection.read(Paths(config.output))
    if selection is None or selection.suite != config.trainer.select_best:
        return None
    rows = [
        (
            f"{scored.step:,}",
            f"{100 * scored.value:.1f} ({100 * scored.low:.0f}-{100 * scored.high:.0f})",
            "hf/" if scored.step == selection.best else "",
        )
        for scored in selection.scores
    ]
    return Table(("step", "score", "exported"), rows)


def _share(row: AccuracyRow | None) -> str:
    return f"{100 * row.accuracy:.1f} % ({100 * row.low:.0f}-{100 * row.high:.0f})" if row else "-"


def _broken(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Metrics that were not finite at some step."""
    values = (item for row in rows for item in row.items())
    bad = Counter(key for key, value in values if isinstance(value, float) and not math.isfinite(value))
    return [f"{key} ({count} of {len(rows)} steps)" for key, count in bad.items()]
