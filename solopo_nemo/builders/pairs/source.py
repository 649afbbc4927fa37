"""Questions to sample on: rows with a short and a long prompt and gold answers, validated before anything is paid."""

from __future__ import annotations

import json
import tempfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from solopo_nemo.builders.contexts.question import BadRow
from solopo_nemo.data.answers import normalize
from solopo_nemo.data.fields import bad_field, identifier, required, text_list
from solopo_nemo.data.rows import Row, read_rows

# the prompt rules of triplet files, whose prompts these become
from solopo_nemo.data.triplets import Prompt, parse_prompt
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.progress import with_progress

SIDES = ("short", "long")


@dataclass(frozen=True)
class Asked:
    """A question with its two prompts.

    Attributes:
        id: Unique in its file.
        prompts: The prompt by side, `short` and `long`.
        answers: Gold answer and aliases.
        meta: What the row says about itself; goes into the triplet.
    """

    id: str
    prompts: dict[str, Prompt]
    answers: tuple[str, ...]
    meta: dict[str, Any]

    def digest(self, side: str) -> str:
        """Return a short hash of all that samples and scores of a side depend on."""
        content = json.dumps([self.id, self.prompts[side], self.answers], ensure_ascii=True)
        return sha256(content.encode()).hexdigest()[:16]


class Source:
    """All good rows of a contexts file, by number in file order; on disk, so that memory grows with their count only.

    Attributes:
        bad: The bad rows.
    """

    def __init__(self, path: Path, spool_folder: Path) -> None:
        """Validate the file as a whole.

        Args:
            path: `.jsonl`, `.jsonl.gz`, `.parquet`, a saved `datasets` folder, or a directory of such files.
            spool_folder: Where the copy lives, in a file without name that vanishes with this process.
        """
        self.bad: list[BadRow] = []
        self._offsets = array("q")
        self._ids: list[str] = []
        spool_folder.mkdir(parents=True, exist_ok=True)
        self._spool: IO[bytes] = tempfile.TemporaryFile(dir=spool_folder)  # noqa: SIM115  closed by __exit__
        seen: set[str] = set()
        for row in with_progress(read_rows(path), "validating"):
            try:
                asked = _parse(row)
                if asked.id in seen:
                    raise bad_field(row.where, "id", f"{asked.id!r} was used by an earlier row, ids must be unique")
            except UserError as error:
                self.bad.append(BadRow(str(error), row.value))
                continue
            seen.add(asked.id)
            self._add(asked)
        if not seen and not self.bad:
            raise UserError(f"{path}: no questions in it: give a file with at least one row")

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._spool.close()

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, number: int) -> Asked:
        self._spool.seek(self._offsets[number])
        prompts, answers, meta = json.loads(self._spool.readline())
        return Asked(self._ids[number], prompts, tuple(answers), meta)

    def ids(self) -> Iterator[str]:
        """Yield the ids in file order."""
        return iter(self._ids)

    def _add(self, asked: Asked) -> None:
        self._ids.append(asked.id)
        self._offsets.append(self._spool.tell())
        self._spool.write(json.dumps([asked.prompts, asked.answers, asked.meta]).encode() + b"\n")


def _parse(row: Row) -> Asked:
    fields, where = row.fields(), row.where
    prompts = {side: parse_prompt(required(fields, f"prompt_{side}", where), f"prompt_{side}", where) for side in SIDES}
    answers = text_list(required(fields, "answers", where), "answers", where)
    if not answers:
        raise bad_field(where, "answers", "is empty, must hold the gold answer")
    for index, answer in enumerate(answers):
        if not normalize(answer):
            raise bad_field(where, f"answers[{index}]", f"{answer!r} holds no letter or digit, nothing can match it")
    meta = fields.get("meta") or {}
    if not isinstance(meta, dict):
        raise bad_field(where, "meta", "must be an object")
    return Asked(identifier(required(fields, "id", where), where), prompts, answers, meta)
