"""Readers of data files. They yield one row at a time, with its location in the file."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.warn import warn_once

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
# secondary outputs of the project's tools
SIDE_SUFFIXES = (".rejects.jsonl", ".dropped.jsonl", ".samples.jsonl")
_PARQUET_BATCH_ROWS = 64
# split names in file names, as in `datasets`
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SHARD = re.compile(r"(\w+)-\d{5}-of-\d{5}\.")
_NAMED = 6


@dataclass(frozen=True)
class Row:
    """One row of a data file.

    Attributes:
        where: Location for messages: `file:line` (from 1), or `file: row N` (from 0) for Arrow files.
        value: The fields; None if the row cannot be read.
        problem: Reason why the row cannot be read; None if it can.
    """

    where: str
    value: dict[str, Any] | None
    problem: str | None = None

    def fields(self) -> dict[str, Any]:
        """Return the fields, without those that are NaN, which pandas writes where a row has none; an id stays.

        Raises:
            UserError: The row cannot be read.
        """
        if self.value is None:
            raise UserError(f"{self.where}: {self.problem}")
        return {name: value for name, value in self.value.items() if value == value or name == "id"}


def is_saved_dataset(path: Path) -> bool:
    """True if `save_to_disk` of `datasets` wrote a folder."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def data_files(path: Path) -> list[Path]:
    """List the data files of a path in reading order.

    For example, a directory with `train.jsonl`, `validation.jsonl` and `test.jsonl` yields `train.jsonl` only.

    Raises:
        UserError: The path is missing or of unknown type; or it is a directory without data files, or with several
            splits whose training split cannot be identified.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or directory: check the path")
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise UserError(f"{path}: unknown kind of file: name it {', '.join(SUFFIXES)}")
        return [path]
    if is_saved_dataset(path):
        # cache-*: cached results of `datasets`, stored next to the data
        return sorted(f for f in path.rglob("*") if f.is_file() and not f.name.startswith("cache-"))
    files = sorted(
        file
        for file in path.iterdir()
        if file.is_file() and file.name.endswith(SUFFIXES) and not file.name.endswith(SIDE_SUFFIXES)
    )
    if not files:
        raise UserError(f"{path}: no data in this directory: expected {', '.join(SUFFIXES)} or a saved dataset")
    return _training_split(path, files)


def _training_split(folder: Path, files: list[Path]) -> list[Path]:
    """Return the files of the training split, and log a warning that names the omitted files.

    Raises:
        UserError: The training split cannot be identified by the file names.
    """
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(_split_of(file.name), []).append(file)
    if len(splits) == 1 or splits.keys() == {"train", ""}:
        return files
    if "train" not in splits or "" in splits:
        raise UserError(
            f"{folder}: holds files of several splits ({_names(files)}): give one file, or a folder with the files of "
            "one split"
        )
    others = [file for name, found in splits.items() if name != "train" for file in found]
    warn_once(f"{folder}: the training split is read ({_names(splits['train'])}), and not {_names(others)}")
    return splits["train"]


def _split_of(name: str) -> str:
    """Return the split in a file name by the rules of `datasets`: `train`, another split, or an empty string."""
    name = name.lower()
    if shard := _SHARD.match(name):
        return shard[1]
    found = {split for split, words in _SPLITS.items() if set(re.split(r"[-._ 0-9]+", name)) & set(words)}
    return found.pop() if len(found) == 1 else ""


def _names(files: list[Path]) -> str:
    return ", ".join([*(file.name for file in files[:_NAMED]), *(["…"] if len(files) > _NAMED else [])])


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file, of a directory of files, or of a saved dataset.

    An unreadable row is yielded with its problem, so that the caller can skip it. Memory: independent of the number of
    rows.

    Raises:
        UserError: As in `data_files`; or a saved dataset cannot be opened.
    """
    files = data_files(path)
    if path.is_dir() and is_saved_dataset(path):
        yield from _read_saved_dataset(path)
        return
    for file in files:
        yield from _read_parquet(file) if file.suffix == ".parquet" else read_json_lines(file)


def read_json_lines(path: Path) -> Iterator[Row]:
    """Yield the rows of a JSON lines file of any name. A file with the suffix `.gz` is decompressed."""
    number = 0
    # typeshed declares different types for the two openers
    with cast(BinaryIO, gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")) as stream:
        try:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield _parse_line(line, f"{path}:{number}")
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            problem = f"truncated or damaged gzip file ({error}): copy or download it again"
            yield Row(f"{path}:{number + 1}", None, problem)


def _parse_line(line: bytes, where: str) -> Row:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        problem = f"not UTF-8 text (byte 0x{line[error.start]:02x} at column {error.start + 1}): save the file as UTF-8"
        return Row(where, None, problem)
    except json.JSONDecodeError as error:
        return Row(where, None, f"broken JSON at column {error.colno} ({error.msg}): each line must be one JSON object")
    except (ValueError, RecursionError) as error:
        return Row(where, None, f"broken JSON ({error}): each line must be one JSON object")
    return json_row(value, where, "line")


def json_row(value: Any, where: str, unit: str) -> Row:
    """Return a decoded JSON value as a row. A value that is not an object becomes a row with a problem."""
    if not isinstance(value, dict):
        return Row(where, None, f"a JSON {type(value).__name__}: each {unit} must be one JSON object")
    return Row(where, value)


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_PARQUET_BATCH_ROWS):
                for value in batch.to_pylist():
                    yield Row(f"{path}: row {number}", value)
                    number += 1
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        yield Row(f"{path}: row {number}", None, f"not a readable parquet file ({reason}): write it again")


def _read_saved_dataset(path: Path) -> Iterator[Row]:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a readable saved dataset ({' '.join(str(error).split())})") from error
    if isinstance(loaded, datasets.DatasetDict):
        if len(loaded) != 1:
            raise UserError(f"{path}: holds several splits: give one of {', '.join(str(path / s) for s in loaded)}")
        loaded = next(iter(loaded.values()))
    yield from dataset_rows(loaded, str(path))


def dataset_rows(dataset: Iterable[dict[str, Any]], name: str) -> Iterator[Row]:
    """Yield the rows of a loaded dataset. `name` is its name in the locations."""
    for number, value in enumerate(dataset):
        yield Row(f"{name}: row {number}", value)
