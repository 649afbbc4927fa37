"""Atomic writes: a reader sees the whole file or no file."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from solopo_nemo.runtime.errors import UserError


def nearest_existing(folder: Path) -> Path:
    """The folder itself if it exists, else its nearest parent that does."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def check_writable(folder: Path, key: str, *, make: bool = True) -> None:
    """Checks that a folder can be written, before any work whose result could be lost.

    Args:
        folder: folder of the results.
        key: the option that names the folder, for the message.
        make: create the folder; otherwise the check writes to its nearest existing parent.

    Raises:
        UserError: the folder cannot be created, or no file can be written.
    """
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=nearest_existing(folder)):
            pass
    except OSError as error:
        raise UserError(f"{key}={folder}: cannot be written ({error.strerror})") from None


def keep_source(source: Path | str, out: Path) -> None:
    """Refuses an output that would replace the data that it is made of, or whose companions (:func:`beside`) would.

    Args:
        source: what is read: a path, or the name of a dataset.
        out: the file to write.

    Raises:
        UserError: both are the same file, or the source is named as a companion.
    """
    read, written = Path(source).resolve(), out.resolve()
    if read.exists() and f"{read}.".startswith(f"{written}."):
        raise UserError(f"{source}: is read and would be replaced by what is made of it: give the output another name")


@contextmanager
def atomic_text(path: Path, *, keep_empty: bool = True) -> Iterator[IO[str]]:
    """Opens a temporary file beside ``path`` for writing, and renames it to ``path`` if the block ends without error.

    The file is flushed to disk (fsync) before it is renamed.

    Args:
        path: the file to write or replace.
        keep_empty: write an empty file too; otherwise an empty result removes ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        if keep_empty or temporary.stat().st_size:
            temporary.replace(path)
        else:
            path.unlink(missing_ok=True)
    finally:
        temporary.unlink(missing_ok=True)


def beside(path: Path, what: str) -> Path:
    """The path of a companion file of a result: ``pairs.jsonl`` and ``rejects`` give ``pairs.jsonl.rejects.jsonl``."""
    return path.with_name(f"{path.name}.{what}.jsonl")


def write_json_line(stream: IO[str], value: dict[str, Any], *, ascii_only: bool = False) -> None:
    """Writes one object as one line of JSON.

    Args:
        stream: an open text file.
        value: the object.
        ascii_only: escape non-ASCII characters, which also writes lone surrogates; otherwise they stay as they are.
    """
    stream.write(json.dumps(value, ensure_ascii=ascii_only) + "\n")
