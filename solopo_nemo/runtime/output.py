"""Atomic writes: a reader sees all of a file or nothing."""

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
    """A folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def check_writable(folder: Path, key: str, *, make: bool = True) -> None:
    """Make a folder and a file in it, before there is a result that could be lost.

    Args:
        folder: where results will go.
        key: the option that names it, for messages.
        make: make the folder; else the nearest one above it that exists has to take a file.

    Raises:
        UserError: that cannot be done.
    """
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=nearest_existing(folder)):
            pass
    except OSError as error:
        raise UserError(f"{key}={folder}: cannot be written ({error.strerror})") from None


@contextmanager
def atomic_text(path: Path, *, keep_empty: bool = True) -> Iterator[IO[str]]:
    """Open a temporary neighbour of `path` for writing; it takes the name `path` when the block ends without error.

    Args:
        path: The file to write or replace.
        keep_empty: Write an empty file too; else an earlier one is removed instead.
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
    """Path of what belongs to a result, such as its rejects: `pairs.jsonl` gives `pairs.jsonl.rejects.jsonl`."""
    return path.with_name(f"{path.name}.{what}.jsonl")


def write_json_line(stream: IO[str], value: dict[str, Any], *, ascii_only: bool = False) -> None:
    """Write one object as one line; non-ASCII text as it is, or escaped, which also takes text that is not valid."""
    stream.write(json.dumps(value, ensure_ascii=ascii_only) + "\n")
