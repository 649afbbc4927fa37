"""Where questions and paragraphs are read from: local files, saved datasets, and what `datasets` loads by name."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from solopo_nemo.builders.contexts.sources.files import read_source_rows
from solopo_nemo.data.rows import SUFFIXES, Row, data_files, dataset_rows, is_saved_dataset
from solopo_nemo.runtime.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

# such as squad or hotpotqa/hotpot_qa; a data file's suffix makes it a path with a mistake
_HUB_NAME = re.compile(r"(?!.*\.(?:json|jsonl|gz|parquet)$)[\w.-]+(?:/[\w.-]+)?")


class RowSource:
    """Rows of a source, which can be read again and again.

    A path that the project's own readers know is left to them. Anything else is a dataset's name on the Hugging Face
    hub or a folder laid out like one, which `datasets` loads: into its cache, from where rows are read one at a time.

    Attributes:
        name: What the user wrote, for messages.
    """

    def __init__(self, name: Path | str, subset: str | None = None, split: str | None = None) -> None:
        """Find the source, and download it where it is not here.

        Args:
            name: A path, or a dataset's name on the hub.
            subset: The dataset's subset (`datasets` calls it config name), where it has several.
            split: The dataset's split, where it has several.

        Raises:
            UserError: It is no path, and `datasets` cannot load it.
        """
        self.name = str(name)
        path = Path(name)
        if split and not subset and is_saved_dataset(path) and (path / split).is_dir():
            path, split = path / split, None
        own = subset is None and split is None and _is_own(path)
        self._data: Path | Dataset = path if own else _load(self.name, subset, split)

    def rows(self) -> Iterator[Row]:
        """Yield the rows; one that cannot be read is yielded with its problem.

        Raises:
            UserError: The file is of an unknown kind, or the saved dataset cannot be opened.
        """
        if isinstance(self._data, Path):
            yield from read_source_rows(self._data)
        else:
            yield from dataset_rows(self._data, self.name)

    def digest(self) -> str:
        """Return a hash of the contents."""
        if not isinstance(self._data, Path):
            return str(self._data._fingerprint)
        digest = hashlib.sha256()
        for file in data_files(self._data) if self._data.is_dir() else [self._data]:
            with file.open("rb") as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
        return digest.hexdigest()


def _is_own(path: Path) -> bool:
    """Tell whether this project's readers take a path; also a file of an unknown kind, which they say more about."""
    if not path.is_dir():
        return path.exists()
    return is_saved_dataset(path) or any(file.name.endswith(SUFFIXES) for file in path.iterdir() if file.is_file())


def _load(name: str, subset: str | None, split: str | None) -> Dataset:
    if not Path(name).exists() and not _HUB_NAME.fullmatch(name):
        raise UserError(f"{name}: no such file or directory: check the path")
    import datasets
    from huggingface_hub.utils import logging

    # its retries, line by line: the last error says the same
    logging.set_verbosity_error()
    try:
        with Console(stderr=True).status(f"loading {name}"):
            loaded = datasets.load_dataset(name, subset, split=split)
    except Exception as error:  # whatever the hub client and the readers of many formats raise
        reason = " ".join(str(error).split())
        raise UserError(
            f"{name}: `datasets` cannot load it ({reason}): give a local path, or a dataset's name on the Hugging Face "
            "hub that can be reached, with --subset and --split where it has several"
        ) from error
    if isinstance(loaded, datasets.DatasetDict):
        if len(loaded) != 1:
            raise UserError(f"{name}: holds several splits: give --split, one of {', '.join(map(str, loaded))}")
        loaded = next(iter(loaded.values()))
    return loaded
