"""Location of the data files that the suites read."""

from __future__ import annotations

from pathlib import Path

from solopo_nemo.builders.contexts.sources.source import RowSource
from solopo_nemo.runtime.errors import UserError

KINDS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")


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
