"""The files that the suites read: where they lie, and what to put there where they do not."""

from __future__ import annotations

from pathlib import Path

from solopo_nemo.builders.contexts.sources.source import RowSource
from solopo_nemo.runtime.errors import UserError

KINDS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")


def find_source(folder: Path, suite: str, name: str, hub: str, subset: str | None, split: str) -> RowSource:
    """The rows of a suite's dataset: a file of the user's, or what ``datasets`` has or loads.

    Args:
        folder: where the user keeps evaluation data.
        suite: folder in it.
        name: the file, without its suffix, one of :data:`KINDS`.
        hub: the dataset's name on the Hugging Face hub.
        subset: its configuration there.
        split: its split there.

    Raises:
        UserError: neither is there, in one line that says which file to put where.
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
