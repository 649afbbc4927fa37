"""The work folder of a build: finished shards, from which a later run resumes, and their assembly."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.json_files import read_json, write_json
from solopo_nemo.runtime.output import atomic_text, write_json_line

_PLAN = "plan.json"
_LOCK = "lock"


def planned_date(path: Path) -> str | None:
    """The date that the chat template prints in an unfinished build; None where there is none."""
    return read_json(path / _PLAN, missing={}).get("date")


class ShardFolder:
    """Shards of a build on disk.

    A shard consists of one JSON lines file for each kind of row, and a record of facts. The record is written last and
    marks the shard as finished.

    Args:
        path: Path of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def opened(self, plan: Mapping[str, str]) -> Iterator[None]:
        """Lock the folder for the duration of the context. Shards of a build with another plan are removed.

        Args:
            plan: Everything that determines the content of the shards.

        Raises:
            UserError: Another process uses the folder, or this tool did not write it.
        """
        if self.path.is_dir() and any(self.path.iterdir()) and not (self.path / _LOCK).is_file():
            raise UserError(
                f"{self.path}: not written by this tool, which needs this name: move it, or give another --out"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / _LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"{self.path}: another run writes here: wait for it, or give another --out") from error
            self._keep_if(plan)
            yield

    def _keep_if(self, plan: Mapping[str, str]) -> None:
        file = self.path / _PLAN
        if read_json(file, missing={}) == plan:
            return
        file.unlink(missing_ok=True)
        for other in self.path.iterdir():
            if other.name != _LOCK:
                other.unlink()
        write_json(file, plan)

    def is_finished(self, number: int) -> bool:
        """True if a shard is finished."""
        return self._facts(number).is_file()

    def write(self, number: int, rows: Iterable[tuple[str, dict[str, Any]]], facts: dict[str, Any]) -> None:
        """Write a shard.

        Args:
            number: Index of the shard in the outputs.
            rows: Kind and value of each row, consumed one at a time.
            facts: Record of the shard, read after the last row.
        """
        with ExitStack() as files:
            streams: dict[str, Any] = {}
            for kind, value in rows:
                if kind not in streams:
                    streams[kind] = files.enter_context(atomic_text(self._rows(number, kind)))
                # rejected rows can contain invalid Unicode
                write_json_line(streams[kind], value, ascii_only=kind == "rejects")
        write_json(self._facts(number), facts, indent=None)

    def facts(self, shards: int) -> Iterator[dict[str, Any]]:
        """Yield the records of the shards in order."""
        for number in range(shards):
            yield read_json(self._facts(number))

    def assemble(self, shards: int, kind: str, out: Path, *, keep_empty: bool = True) -> None:
        """Concatenate the rows of one kind from all shards. With `keep_empty=False`, no file is written for no rows."""
        # assemble in this folder, so that an interrupted run leaves no partial file next to the outputs
        whole = self.path / out.name
        with atomic_text(whole, keep_empty=keep_empty) as stream:
            for number in range(shards):
                file = self._rows(number, kind)
                if file.is_file():
                    with file.open(encoding="utf-8", newline="") as shard:
                        shutil.copyfileobj(shard, stream)
        if whole.exists():
            whole.replace(out)
        else:
            out.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the folder with all shards."""
        shutil.rmtree(self.path)

    def _facts(self, number: int) -> Path:
        return self.path / f"{number:06d}.json"

    def _rows(self, number: int, kind: str) -> Path:
        return self.path / f"{number:06d}.{kind}.jsonl"
