"""The documents of files, folders, rows and datasets."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from solopo_nemo.builders.contexts.question import BadRow
from solopo_nemo.builders.contexts.sources.source import RowSource
from solopo_nemo.builders.questions.readers import READERS, Document, read_file
from solopo_nemo.data.fields import bad_field, has, required_text
from solopo_nemo.data.rows import SUFFIXES, is_saved_dataset
from solopo_nemo.runtime.errors import UserError, require

_ROWS = (".jsonl", ".jsonl.gz", ".parquet")
"""Files of rows that are read of a folder. A `.json` file in one may be anything: it is read where it is named."""


class Documents:
    """The documents of what a user names, which can be read repeatedly.

    Attributes:
        others: Suffix -> number of the files in folders that no reader takes.
    """

    def __init__(
        self,
        sources: Sequence[Path | str],
        subset: str | None = None,
        split: str | None = None,
        out: Path | None = None,
    ) -> None:
        """Find the files.

        Args:
            sources: Files, folders (also those below), saved datasets, or names of datasets on the hub.
            subset: Subset of a dataset.
            split: Split of a dataset.
            out: Output of the run. It and what is written beside it are no documents of a folder.

        Raises:
            UserError: A source does not exist, is of unknown kind, or holds no documents.
        """
        self.others: Counter[str] = Counter()
        self._files: list[tuple[Path, str] | RowSource] = []
        seen: set[str] = set()
        for source in sources:
            path, before = Path(source), len(self._files)
            if path.is_dir() and not is_saved_dataset(path):
                for file in _files(path):
                    if out is not None and f"{file.resolve()}.".startswith(f"{out.resolve()}."):
                        continue
                    self._add(file, file.relative_to(path).as_posix() if len(sources) == 1 else str(file), seen)
                require(len(self._files) > before, f"{path}: no documents in this folder: {_expected()}")
            elif path.suffix.lower() in READERS:
                require(path.exists(), f"{path}: no such file: check the path")
                self._add(path, path.name if len(sources) == 1 else str(path), seen)
            elif path.is_file() and not path.name.endswith(SUFFIXES):
                raise UserError(f"{path}: unknown kind of document: {_expected()}")
            else:
                self._files.append(RowSource(source, subset, split))

    def __iter__(self) -> Iterator[Document | BadRow]:
        """Yield the documents, and what cannot be read of them, in the order of their names."""
        for file in self._files:
            if isinstance(file, RowSource):
                yield from _rows(file)
                continue
            try:
                yield read_file(*file)
            except UserError as error:
                yield BadRow(str(error), None)

    def _add(self, file: Path, name: str, seen: set[str]) -> None:
        real = os.path.realpath(file)
        if real in seen:
            return
        seen.add(real)
        if file.suffix.lower() in READERS:
            self._files.append((file, name))
        elif file.name.endswith(_ROWS):
            self._files.append(RowSource(file))
        else:
            self.others[file.suffix.lower() or "no suffix"] += 1


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder and of those below, each folder once, also where links form a loop."""
    seen: set[str] = set()
    for where, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(where, name) for name in sorted(files) if not name.startswith("."))


def _rows(source: RowSource) -> Iterator[Document | BadRow]:
    for row in source.rows():
        try:
            fields = row.fields()
            title = required_text(fields, "title", row.where) if has(fields, "title") else ""
            body = required_text(fields, "text", row.where)
            if "\0" in body:
                raise bad_field(row.where, "text", "holds NUL characters, which are no text")
            yield Document(row.where, " ".join(title.split()), body.replace("\r\n", "\n").replace("\r", "\n"))
        except UserError as error:
            yield BadRow(str(error), row.value)


def _expected() -> str:
    return f"expected {', '.join([*READERS, *_ROWS])} or a saved dataset"
