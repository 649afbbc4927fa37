"""Location of the data files that the suites read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from solopo_nemo.builders.contexts.sources.source import RowSource
from solopo_nemo.data.json_rows import Row
from solopo_nemo.evaluation.settings import SuiteSettings
from solopo_nemo.evaluation.task import Question
from solopo_nemo.runtime.errors import UserError, require
from solopo_nemo.runtime.progress import with_progress

logger = logging.getLogger("solopo_nemo")

KINDS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")


def parsed(
    source: RowSource, parse: Callable[[Row, int], tuple[Question, int]], settings: SuiteSettings, what: str
) -> dict[str, Any]:
    """Read the questions of a data file.

    Args:
        source: the rows.
        parse: returns the question of a row with a number, and the tokens of its prompt; raises ``UserError`` for a bad
            row.
        settings: the number of rows. Bad rows are left out and named if ``skip_bad`` is set.
        what: suite and dataset, for messages.

    Returns:
        The fields ``questions`` and ``tokens`` of a cell.

    Raises:
        UserError: a row is bad and ``skip_bad`` is off, or no row is good.
    """
    good: list[tuple[Question, int]] = []
    bad: list[str] = []
    for number, row in enumerate(with_progress(islice(source.rows(), settings.limit), what)):
        try:
            good.append(parse(row, number))
        except UserError as error:
            if not settings.skip_bad:
                raise UserError(f"{error}; --skip-bad goes on without such rows and names them") from error
            bad.append(str(error))
    name_bad(bad, what)
    require(bool(good), f"{what}: no row of its data is good: {bad[0] if bad else 'the file is empty'}")
    return {"questions": [question for question, _ in good], "tokens": max(tokens for _, tokens in good)}


def name_bad(errors: Sequence[str], what: str) -> None:
    """Name the bad rows that are left out, one line each."""
    for error in errors:
        logger.warning("%s: left out: %s", what, error)


def find_source(folder: Path, suite: str, name: str, hub: str, subset: str | None, split: str) -> RowSource:
    """The rows of a suite's dataset: a local file if there is one, else the dataset on the Hugging Face hub.

    For example, ``<folder>/longbench_qa/qasper.jsonl`` takes precedence over ``Xnhyacinth/LongBench``.

    Args:
        folder: folder of the evaluation data.
        suite: subfolder of the suite.
        name: file name without its suffix, which is one of :data:`KINDS`.
        hub: name of the dataset on the hub.
        subset: its configuration on the hub.
        split: its split on the hub.

    Raises:
        UserError: neither the file nor the hub dataset is available. The message names the file to provide.
    """
    for kind in KINDS:
        path = folder / suite / f"{name}{kind}"
        if path.exists():
            return RowSource(path)
    try:
        return RowSource(hub, subset, split)
    except UserError as error:
        rows = f"{hub} ({subset})" if subset else hub
        raise UserError(
            f"{suite}: no {name}: put it at {folder / suite / name}.jsonl (or .json, .parquet, .gz), with rows as the "
            f"Hugging Face hub has them in {rows}; loading them from there failed: "
            f"{' '.join(str(error.__cause__ or error).split())}"
        ) from None
