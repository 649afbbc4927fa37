"""The questions of a sampling run: rows with a short prompt, a long prompt and gold answers."""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solopo_nemo.builders.contexts.question import BadRow
from solopo_nemo.data.fields import bad_field, identifier, required, required_list, used_id
from solopo_nemo.data.json_rows import Row
from solopo_nemo.data.messages import Prompt, parse_prompt
from solopo_nemo.data.normal_form import normalize
from solopo_nemo.data.rows import read_rows

# the same prompt rules as in triplet files
from solopo_nemo.data.triplets import template_fields
from solopo_nemo.runtime.errors import UserError, require
from solopo_nemo.runtime.json_files import json_hash
from solopo_nemo.runtime.progress import with_progress

SIDES = ("short", "long")
_SCHEMA = "CREATE TABLE questions (number INTEGER PRIMARY KEY, id TEXT UNIQUE, rest TEXT)"


@dataclass(frozen=True)
class Asked:
    """A question with its two prompts.

    Attributes:
        id: Unique in its file.
        prompts: Side (`short`, `long`) -> prompt.
        answers: Gold answer and aliases.
        meta: The `meta` field of the row, which is copied to the triplet.
    """

    id: str
    prompts: dict[str, Prompt]
    answers: tuple[str, ...]
    meta: dict[str, Any]

    def digest(self, side: str) -> str:
        """Return a hash of the id, prompt and answers, which determine the samples and scores of a side."""
        return json_hash([self.id, self.prompts[side], self.answers])[:16]


class Source:
    """The valid rows of a contexts file, numbered in file order. Memory: constant, because the rows are on disk.

    Attributes:
        bad: The invalid rows.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        """Read and validate the whole file.

        Args:
            path: `.jsonl`, `.jsonl.gz`, `.parquet`, a saved `datasets` folder, or a directory of such files.
            folder: Folder of the copy. The copy is an unlinked SQLite file, so it disappears with this process.

        Raises:
            UserError: The file is missing, empty or of unknown type.
        """
        self.bad: list[BadRow] = []
        self._count = 0
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            self._db = sqlite3.connect(file.name)
            self._db.executescript("PRAGMA journal_mode = OFF; PRAGMA locking_mode = EXCLUSIVE; " + _SCHEMA)
        for row in with_progress(read_rows(path), "validating"):
            try:
                self._add(_parse(row), row.where)
            except UserError as error:
                self.bad.append(BadRow(str(error), row.value))
        require(self._count > 0 or bool(self.bad), f"{path}: no questions in it: give a file with at least one row")

    def close(self) -> None:
        """Remove the copy."""
        self._db.close()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Asked:
        id_, rest = self._db.execute("SELECT id, rest FROM questions WHERE number = ?", (number,)).fetchone()
        prompts, answers, meta = json.loads(rest)
        return Asked(id_, prompts, tuple(answers), meta)

    def ids(self) -> Iterator[str]:
        """Yield the ids in file order."""
        return (id_ for (id_,) in self._db.execute("SELECT id FROM questions ORDER BY number"))

    def _add(self, asked: Asked, where: str) -> None:
        rest = json.dumps([asked.prompts, asked.answers, asked.meta])
        try:
            self._db.execute("INSERT INTO questions VALUES (?, ?, ?)", (self._count, asked.id, rest))
        except sqlite3.IntegrityError:
            raise used_id(asked.id, where) from None
        self._count += 1


def _parse(row: Row) -> Asked:
    fields, where = row.fields(), row.where
    for name in template_fields(fields, where):
        what = "is not taken for sampling: take it out (--chat-template-kwargs sets switches for all prompts)"
        raise bad_field(where, name, what)
    prompts = {side: parse_prompt(required(fields, f"prompt_{side}", where), f"prompt_{side}", where) for side in SIDES}
    answers = required_list(fields, "answers", where)
    for index, answer in enumerate(answers):
        if not normalize(answer):
            raise bad_field(where, f"answers[{index}]", f"{answer!r} holds no letter or digit, nothing can match it")
    meta = fields.get("meta") or {}
    if not isinstance(meta, dict):
        raise bad_field(where, "meta", "must be an object")
    return Asked(identifier(required(fields, "id", where), where), prompts, answers, meta)
