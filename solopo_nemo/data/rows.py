"""Readers of data files. They yield one row at a time, with its location in the file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from solopo_nemo.data.json_rows import Row, read_json_array, read_json_lines
from solopo_nemo.runtime.errors import UserError, require
from solopo_nemo.runtime.warn import warn_once

JSON_SUFFIXES = (".json", ".json.gz")
"""Arrays or lines; of a folder's files, only where it has no others, because descriptions end so as well."""
SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet", *JSON_SUFFIXES)
_NO_DATA = ("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json", "config.json")
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


def is_saved_dataset(path: Path) -> bool:
    """True if `save_to_disk` of `datasets` wrote a folder."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def data_files(path: Path) -> list[Path]:
    """List the data files of a path in reading order.

    For example, a directory with `train.jsonl`, `validation.jsonl` and `test.jsonl` yields `train.jsonl` only. A
    directory without data files of its own yields those of a folder in it, such as `data/train-00000-of-00001.parquet`
    of a clone from the hub.

    Raises:
        UserError: The path is missing or of unknown type; or it is a directory without data files, or with several
            splits whose training split cannot be identified, or with training files in several folders.
    """
    if not path.exists():
        hub = f"; hf download --repo-type dataset {path} --local-dir DIR fetches one of the hub"
        raise UserError(f"{path}: no such file or directory: check the path{hub if len(path.parts) == 2 else ''}")
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise UserError(f"{path}: unknown kind of file: name it {', '.join(SUFFIXES)}{_conversion(path)}")
        return [path]
    require(path.is_dir(), f"{path}: a pipe or a device, which cannot be read twice: write its rows to a file")
    if is_saved_dataset(path):
        # cache-*: cached results of `datasets`, stored next to the data
        return sorted(f for f in path.rglob("*") if f.is_file() and not f.name.startswith("cache-"))
    below = (sorted(file for file in path.glob(pattern) if _is_data(file, path)) for pattern in ("*", "*/**/*"))
    files = next(filter(None, below), [])
    files = [file for file in files if not file.name.endswith(JSON_SUFFIXES)] or files
    if not files:
        others = next((f for f in sorted(path.iterdir()) if _conversion(f)), path)
        kinds = f"expected {', '.join(SUFFIXES)} or a saved dataset{_conversion(others)}"
        raise UserError(f"{path}: no data in this directory: {kinds}")
    found = _training_split(path, files)
    if len(folders := sorted({file.parent for file in found})) > 1:
        names = ", ".join(str(folder.relative_to(path)) for folder in folders[:_NAMED])
        raise UserError(f"{path}: training files lie in several folders ({names}): give one of them")
    return found


def _is_data(file: Path, folder: Path) -> bool:
    own = file.name.endswith(SUFFIXES) and not file.name.endswith((*SIDE_SUFFIXES, *_NO_DATA))
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)  # as for `datasets`
    return own and not hidden and file.is_file() and not is_saved_dataset(file.parent)


def _conversion(file: Path) -> str:
    """How to convert a file of another kind, as the end of a message; empty for an unknown kind."""
    separator = ", sep='\\t'" if file.suffix == ".tsv" else ""
    lines = "to_json('rows.jsonl', orient='records', lines=True)"
    csv = f"pandas.read_csv({file.name!r}, dtype=str, keep_default_na=False{separator}).{lines}"
    arrow = f"datasets.Dataset.from_file({file.name!r}).to_json('rows.jsonl')"
    way = {".csv": csv, ".tsv": csv, ".arrow": arrow}.get(file.suffix)
    return f"; to convert it: {way}" if way else ""


def _training_split(folder: Path, files: list[Path]) -> list[Path]:
    """Return the files of the training split, and log a warning that names the omitted files.

    Raises:
        UserError: The training split cannot be identified by the file names.
    """
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(_split_of(file.relative_to(folder)), []).append(file)
    if len(splits) == 1 or splits.keys() == {"train", ""}:
        return files
    if "train" not in splits or "" in splits:
        raise UserError(
            f"{folder}: holds files of several splits ({_names(folder, files)}): give one file, or a folder with the "
            "files of one split"
        )
    others = [file for name, found in splits.items() if name != "train" for file in found]
    read = _names(folder, splits["train"])
    warn_once(f"{folder}: the training split is read ({read}), and not {_names(folder, others)}")
    return splits["train"]


def _split_of(path: Path) -> str:
    """Return the split in a relative path by the rules of `datasets`: `train`, another split, or an empty string."""
    name = path.as_posix().lower()
    if shard := _SHARD.match(path.name.lower()):
        return shard[1]
    found = {split for split, words in _SPLITS.items() if set(re.split(r"[-._ 0-9/]+", name)) & set(words)}
    return found.pop() if len(found) == 1 else ""


def _names(folder: Path, files: list[Path]) -> str:
    names = [str(file.relative_to(folder)) for file in files[:_NAMED]]
    return ", ".join([*names, *(["…"] if len(files) > _NAMED else [])])


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
        with file.open("rb") as stream:
            start = stream.read(64)
        if start.startswith(b"version https://git-lfs"):
            yield Row(str(file), None, "a Git LFS pointer, not the file itself: git lfs pull fetches it")
        elif file.suffix == ".parquet":
            yield from _read_parquet(file)
        elif file.name.endswith(JSON_SUFFIXES):
            yield from read_json_array(file)
        else:
            yield from read_json_lines(file)


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
