"""Sources of questions and paragraphs: local files, saved datasets, and datasets that `datasets` loads by name."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from solopo_nemo.data.json_rows import Row
from solopo_nemo.data.rows import SUFFIXES, data_files, dataset_rows, is_saved_dataset, read_rows
from solopo_nemo.runtime.errors import UserError, require

if TYPE_CHECKING:
    from datasets import Dataset

# such as squad or hotpotqa/hotpot_qa; a name with the suffix of a data file is a mistyped path
_HUB_NAME = re.compile(r"(?!.*\.(?:json|jsonl|gz|parquet)$)[\w.-]+(?:/[\w.-]+)?")


class RowSource:
    """The rows of a source, which can be read repeatedly.

    The project's own readers read local data files and saved datasets. `datasets` loads everything else: a dataset name
    on the Hugging Face hub, or a folder with the layout of a hub dataset. Rows are then read from its cache, one at a
    time.

    Attributes:
        name: The source as the user wrote it, for messages.
    """

    def __init__(self, name: Path | str, subset: str | None = None, split: str | None = None) -> None:
        """Find the source, and download it if it is not local.

        Args:
            name: A path, or the name of a dataset on the hub.
            subset: Subset of the dataset (the config name of `datasets`); None if there is only one.
            split: Split of the dataset; None if there is only one.

        Raises:
            UserError: The path does not exist, or `datasets` cannot load the source.
        """
        self.name = str(name)
        path = Path(name)
        if split and not subset and is_saved_dataset(path) and (path / split).is_dir():
            path, split = path / split, None
        own = subset is None and split is None and _is_own(path)
        self._data: Path | Dataset = path if own else _load(self.name, subset, split)

    def rows(self) -> Iterator[Row]:
        """Yield the rows. An unreadable row has a problem instead of a value.

        Raises:
            UserError: The file type is unknown, or the saved dataset cannot be opened.
        """
        if isinstance(self._data, Path):
            yield from read_rows(self._data)
        else:
            yield from dataset_rows(self._data, self.name)

    def digest(self) -> str:
        """Return a hash of the content."""
        if not isinstance(self._data, Path):
            return str(self._data._fingerprint)
        digest = hashlib.sha256()
        for file in data_files(self._data) if self._data.is_dir() else [self._data]:
            with file.open("rb") as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
        return digest.hexdigest()


def _is_own(path: Path) -> bool:
    """True if this project's readers read a path. They also get files of unknown type and report them clearly."""
    if not path.is_dir():
        return path.exists()
    return is_saved_dataset(path) or any(file.name.endswith(SUFFIXES) for file in path.iterdir() if file.is_file())


def _load(name: str, subset: str | None, split: str | None) -> Dataset:
    require(
        Path(name).exists() or _HUB_NAME.fullmatch(name) is not None,
        f"{name}: no such file or directory: check the path",
    )
    import datasets
    from huggingface_hub.utils import logging

    # hide the client's retry messages; the final error contains the same text
    logging.set_verbosity_error()
    try:
        with Console(stderr=True).status(f"loading {name}"):
            loaded = datasets.load_dataset(name, subset, split=split)
    except Exception as error:  # the hub client and the file readers raise many types
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
