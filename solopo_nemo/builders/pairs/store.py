"""The samples file: a SQLite database. Stored answers survive a crash of the process."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from solopo_nemo.builders.pairs.backend import Sample, Sampling
from solopo_nemo.builders.pairs.source import Asked
from solopo_nemo.data.answers import FIRST_RULE, is_right, rule_name, stated_answer, without_thoughts
from solopo_nemo.runtime.errors import RunFault, UserError

PAIR = "pair"
_FORMAT = 3
_COLUMNS = "id, side, digest, text, answer, prefixed, correct, cut, rule, reason"
_FIELDS = ("text", "answer", "prefixed", "right", "cut", "rule", "reason")
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS settings (sampling TEXT);
CREATE TABLE IF NOT EXISTS samples ({_COLUMNS});
CREATE INDEX IF NOT EXISTS prompts ON samples (id, side);
"""
# truncated and empty responses are not used for training
_FINISHED = "(text != '' AND NOT cut)"
_ENTRY = (
    f"SELECT digest, sum(correct AND {_FINISHED}), sum({_FINISHED}), sum(NOT {_FINISHED}),"
    f" sum(NOT prefixed AND {_FINISHED}) FROM samples WHERE id = ? AND side = ? GROUP BY digest"
)


@dataclass(frozen=True)
class Entry:
    """Counts of the samples of one prompt.

    Attributes:
        digest: Hash of id, prompt and answers.
        right: Finished samples with a correct answer.
        finished: Samples that are neither truncated nor empty.
        cut: Samples that reached the token limit or state no answer.
        unprefixed: Finished samples without `The answer is:`, scored by their last line.
    """

    digest: str
    right: int
    finished: int
    cut: int
    unprefixed: int

    @property
    def samples(self) -> int:
        """Number of all samples."""
        return self.finished + self.cut

    @property
    def verdict(self) -> str:
        """Return `pair`, or the rule that drops the prompt: `all_right`, `all_wrong`, `none_finished`."""
        if not self.finished:
            return "none_finished"
        if self.right in (0, self.finished):
            return "all_right" if self.right else "all_wrong"
        return PAIR


class SampleStore:
    """A database of samples and scores. Each batch of answers is one transaction.

    The file also contains the sampling settings. Different settings are refused, and so is a second process. Version
    0.1 wrote `FILE.samples.jsonl`; a new database imports those samples.

    Attributes:
        path: The file.
        sampling: Sampling settings.
        rule: Rule of the scores; see :func:`~solopo_nemo.data.answers.rule_name`.
    """

    def __init__(self, path: Path, sampling: Sampling, *, literal: bool = False) -> None:
        """Open or create the file.

        Args:
            path: SQLite file.
            sampling: Sampling settings.
            literal: Score by the literal form of sub-EM. Samples that were scored by another rule are scored again.

        Raises:
            UserError: The file has other settings, is in use, or is damaged.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._settings, self.sampling = asdict(sampling), sampling
        self._literal, self.rule, self._stale = literal, rule_name(literal), False
        self._db = _connect(path)
        try:
            self._open()
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> SampleStore:
        return self

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        self._db.close()
        if isinstance(error, sqlite3.Error):
            raise RunFault(f"{self.path}: {error}: free space, or give another --out if it is damaged") from error

    def finished(self, asked: Asked, side: str) -> Entry | None:
        """Return the counts of a prompt; None while samples are missing.

        Raises:
            UserError: The stored samples belong to another prompt or other answers.
        """
        entry = self._entry(asked, side)
        if entry is not None and entry.digest != asked.digest(side):
            raise UserError(
                f"{self.path}: holds samples of {asked.id!r} for another {side} prompt or other answers: "
                "give the files it was made with, or another --out"
            )
        return entry if entry is not None and entry.samples >= self.sampling.wanted(side) else None

    def count(self, asked: Asked, side: str) -> int:
        """Return the number of stored samples of a prompt."""
        entry = self._entry(asked, side)
        return 0 if entry is None else entry.samples

    def add(self, asked: Asked, side: str, samples: Sequence[Sample]) -> None:
        """Score samples of a prompt and commit them to disk."""
        head = (asked.id, side, asked.digest(side))
        with self._db:
            self._write(
                (*head, one.text, *self._scored(asked, one.text, one.cut), one.reason or _why(asked, one))
                for one in samples
            )

    def texts(self, asked: Asked, side: str) -> tuple[list[str], list[str]]:
        """Return the correct and the incorrect finished answers of a prompt."""
        query = f"SELECT text, correct FROM samples WHERE id = ? AND side = ? AND {_FINISHED} ORDER BY rowid"
        found = self._db.execute(query, (asked.id, side)).fetchall()
        return [text for text, right in found if right], [text for text, right in found if not right]

    def _scored(self, asked: Asked, text: str, cut: bool) -> tuple[Any, ...]:
        """Return the columns of a sample that its rule determines. One that says nothing of what was asked is cut."""
        stated = stated_answer(text)
        right = is_right(stated, asked.answers, literal=self._literal)
        return stated.text, stated.prefixed, right, cut or not _said(asked, text), self.rule

    def _score_again(self, asked: Asked, side: str) -> None:
        """Score the samples of a prompt that another rule has scored."""
        query = "SELECT rowid, text, cut FROM samples WHERE id = ? AND side = ? AND digest = ? AND rule != ?"
        found = self._db.execute(query, (asked.id, side, asked.digest(side), self.rule)).fetchall()
        update = "UPDATE samples SET answer = ?, prefixed = ?, correct = ?, cut = ?, rule = ? WHERE rowid = ?"
        with self._db:
            self._db.executemany(update, [(*self._scored(asked, text, bool(cut)), row) for row, text, cut in found])

    def reasons(self) -> dict[str, int]:
        """Return why samples are not whole -> their number."""
        query = f"SELECT reason, count(*) FROM samples WHERE NOT {_FINISHED} GROUP BY reason ORDER BY reason"
        return {reason or "unknown": count for reason, count in self._db.execute(query)}

    def _entry(self, asked: Asked, side: str) -> Entry | None:
        if self._stale:
            self._score_again(asked, side)
        found = self._db.execute(_ENTRY, (asked.id, side)).fetchone()
        return None if found is None else Entry(*found)

    def _write(self, rows: Iterable[tuple[Any, ...]]) -> None:
        # store the settings with the first samples: a database without samples accepts any settings
        if self._db.execute("SELECT 1 FROM settings").fetchone() is None:
            self._db.execute("INSERT INTO settings VALUES (?)", (json.dumps(self._settings),))
        self._db.executemany(f"INSERT INTO samples ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def _open(self) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > _FORMAT:
            raise UserError(f"{self.path}: written by a later version of this tool: use that, or give another --out")
        if version < _FORMAT:
            with self._db:
                if version:
                    self._db.execute(f"ALTER TABLE samples ADD COLUMN rule DEFAULT '{FIRST_RULE}'")
                    self._db.execute("ALTER TABLE samples ADD COLUMN reason DEFAULT ''")
                else:
                    self._take_over(self.path.with_suffix(".jsonl"))
                self._db.execute(f"PRAGMA user_version = {_FORMAT}")
        settings = self._db.execute("SELECT sampling FROM settings").fetchone()
        if settings is not None:
            self._check(self.path, json.loads(settings[0]))
        other = self._db.execute("SELECT DISTINCT rule FROM samples WHERE rule != ?", (self.rule,)).fetchall()
        self._stale = bool(other)
        for (rule,) in other:
            text = f"{self.path}: samples scored by answer rule {rule} are scored again by rule {self.rule}"
            Console(stderr=True, markup=False).print(text, highlight=False, soft_wrap=True)

    def _take_over(self, earlier: Path) -> None:
        """Import the samples of version 0.1. A truncated last line is ignored."""
        if not earlier.is_file():
            return
        settings: dict[str, Any] = {}
        with earlier.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if not line.endswith(b"\n"):
                    break
                try:
                    value = json.loads(line)
                    rows = list(_rows(value)) if number > 1 else []
                    settings = settings or value["sampling"]
                except (ValueError, KeyError, TypeError) as error:
                    raise UserError(f"{earlier}:{number}: not a line of samples ({error!r}): remove it") from error
                if rows:
                    self._check(earlier, settings)
                    self._write(rows)
        count = self._db.execute("SELECT count(*) FROM samples").fetchone()[0]
        Console(stderr=True, markup=False).print(
            f"{count} samples taken over from {earlier}", highlight=False, soft_wrap=True
        )

    def _check(self, path: Path, before: dict[str, Any]) -> None:
        # samples of earlier versions have no fingerprint of their server
        before = {"server": self._settings["server"]} | before
        if before["server"] != self._settings["server"] and before.get("model") == self._settings["model"]:
            raise UserError(
                f"{path}: holds samples of another model that the server gave under the name {before['model']} (its "
                "description or its answer to a fixed prompt differs): give another --out, or serve the first one"
            )
        changed = [
            f"{name} {before.get(name)!r} (now {now!r})"
            for name, now in self._settings.items()
            if before.get(name) != now
        ]
        if changed:
            raise UserError(
                f"{path}: holds samples of other settings, {', '.join(changed)}: give the same, or another --out"
            )


def samples_file(out: Path) -> Path:
    """Return the path of the samples, such as `pairs.jsonl.samples.sqlite` for the result `pairs.jsonl`."""
    return out.with_name(f"{out.name}.samples.sqlite")


def sampled_setting(path: Path, name: str) -> str | None:
    """Return a setting of the samples of a file, such as the template's `date`; None without samples or without it."""
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        settings = database.execute("SELECT sampling FROM settings").fetchone()
        return json.loads(settings[0]).get(name) if settings else None
    return None


def _connect(path: Path) -> sqlite3.Connection:
    try:
        database = sqlite3.connect(path, timeout=0)
        # the exclusive lock of this transaction is held until the file is closed
        database.executescript(f"PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE; {_SCHEMA} COMMIT")
    except sqlite3.Error as error:
        if "locked" in str(error):
            raise UserError(f"{path}: in use by another process: wait for it, or give another --out") from None
        raise UserError(f"{path}: cannot hold samples ({error}): remove it, or give another --out") from None
    return database


def _said(asked: Asked, text: str) -> str:
    """Return the answer to a question, or all of another text but its thoughts."""
    return stated_answer(text).text if asked.answers else without_thoughts(text).strip()


def _why(asked: Asked, sample: Sample) -> str:
    """Return why a text without a finish reason of its own is no whole answer."""
    if sample.cut:
        return "length"
    return "" if _said(asked, sample.text) else "no stated answer"


def _rows(batch: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    """Yield the samples of one line of version 0.1 in the order of the columns."""
    for sample in batch["samples"]:
        scored = {**sample, "rule": FIRST_RULE, "reason": ""}
        yield batch["id"], batch["side"], batch["digest"], *(scored[name] for name in _FIELDS)
