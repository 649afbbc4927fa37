"""The samples file: each batch of answers is one line, written once and kept through any end of the process."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from solopo_nemo.builders.pairs.backend import Sample, Sampling
from solopo_nemo.builders.pairs.source import Asked
from solopo_nemo.data.answers import is_right, stated_answer
from solopo_nemo.runtime.errors import UserError

PAIR = "pair"
_FORMAT = 1


@dataclass(frozen=True)
class Entry:
    """What is known of a prompt.

    Attributes:
        offsets: Where its lines begin.
        digest: Of question, prompt and answers.
        right: Finished samples that are right.
        finished: Samples that reached their end.
        cut: Samples that did not.
        unprefixed: Samples without `The answer is:`.
    """

    offsets: tuple[int, ...]
    digest: str
    right: int
    finished: int
    cut: int
    unprefixed: int

    @property
    def samples(self) -> int:
        """All samples."""
        return self.finished + self.cut

    @property
    def verdict(self) -> str:
        """Return `pair`, or the rule that drops the prompt: `all_right`, `all_wrong`, `none_finished`."""
        if not self.finished:
            return "none_finished"
        if self.right in (0, self.finished):
            return "all_right" if self.right else "all_wrong"
        return PAIR

    def __add__(self, later: Entry) -> Entry:
        return Entry(
            self.offsets + later.offsets,
            self.digest,
            self.right + later.right,
            self.finished + later.finished,
            self.cut + later.cut,
            self.unprefixed + later.unprefixed,
        )


class SampleStore:
    """An append-only file of samples and scores. A cut last line, of a killed process, is taken off and done again.

    The first line holds the sampling settings; other settings for the same file are refused, and so is a second
    process.
    """

    def __init__(self, path: Path, sampling: Sampling) -> None:
        """Open or begin the file.

        Raises:
            UserError: It is of other settings, in use, or damaged.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._entries: dict[tuple[str, str], Entry] = {}
        self._settings = asdict(sampling)
        self._samples = sampling.samples
        # closed by __exit__
        self._file = path.open("a+b")
        try:
            self._lock()
            self._cut_last_line()
            self._load()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> SampleStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def finished(self, asked: Asked, side: str) -> Entry | None:
        """Return what is known of a prompt, None where samples of it are still missing.

        Raises:
            UserError: It was sampled with another prompt or other answers.
        """
        entry = self._entries.get((asked.id, side))
        if entry is not None and entry.digest != asked.digest(side):
            raise UserError(
                f"{self.path}: holds samples of {asked.id!r} for another {side} prompt or other answers: "
                "give the contexts file it was made with, or another --out"
            )
        return entry if entry is not None and entry.samples >= self._samples else None

    def count(self, asked: Asked, side: str) -> int:
        """Return how many samples of a prompt there are."""
        entry = self._entries.get((asked.id, side))
        return 0 if entry is None else entry.samples

    def add(self, asked: Asked, side: str, samples: Sequence[Sample]) -> None:
        """Score samples of a prompt and write them; they are on disk when this returns."""
        stated = [stated_answer(sample.text) for sample in samples]
        line = {
            "id": asked.id,
            "side": side,
            "digest": asked.digest(side),
            "samples": [
                {
                    "text": sample.text,
                    "answer": answer.text,
                    "prefixed": answer.prefixed,
                    "right": is_right(answer, asked.answers),
                    "cut": sample.cut,
                }
                for sample, answer in zip(samples, stated, strict=True)
            ],
        }
        self._know(line, self._append(line))

    def texts(self, asked: Asked, side: str) -> tuple[list[str], list[str]]:
        """Return the right and the wrong answers of a sampled prompt, without those that were cut."""
        samples: list[dict[str, Any]] = []
        with self.path.open("rb") as stream:
            for offset in self._entries[asked.id, side].offsets:
                stream.seek(offset)
                samples += json.loads(stream.readline())["samples"]
        finished = [sample for sample in samples if _usable(sample)]
        return (
            [sample["text"] for sample in finished if sample["right"]],
            [sample["text"] for sample in finished if not sample["right"]],
        )

    def _know(self, line: dict[str, Any], offset: int) -> None:
        key, entry = (line["id"], line["side"]), _entry(line, offset)
        before = self._entries.get(key)
        self._entries[key] = entry if before is None else before + entry

    def _append(self, line: dict[str, Any]) -> int:
        if not self._file.seek(0, os.SEEK_END):
            self._file.write(_encode({"format": _FORMAT, "sampling": self._settings}))
        offset = self._file.tell()
        self._file.write(_encode(line))
        self._file.flush()
        os.fsync(self._file.fileno())
        return offset

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{self.path}: another process is writing it: wait for that or stop it") from error
        except OSError:
            # a file system without locks
            return

    def _cut_last_line(self) -> None:
        end = size = self._file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 65536)
            self._file.seek(start)
            found = self._file.read(end - start).rfind(b"\n")
            end = start + found + 1 if found >= 0 else start
            if found >= 0:
                break
        if end < size:
            self._file.truncate(end)

    def _load(self) -> None:
        self._file.seek(0)
        if self._file.readline() and not self._file.read(1):
            # settings without samples bind nobody
            self._file.truncate(0)
        self._file.seek(0)
        offset = 0
        for number, line in enumerate(self._file, start=1):
            try:
                value = json.loads(line)
                if number == 1:
                    self._check(value)
                else:
                    self._know(value, offset)
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{self.path}:{number}: not a line of samples ({error!r}): remove the line") from error
            offset += len(line)

    def _check(self, header: dict[str, Any]) -> None:
        if header["format"] != _FORMAT:
            raise UserError(f"{self.path}: written by another version of this tool: give another --out")
        before, now = header["sampling"], self._settings
        changed = [
            f"{name} {before.get(name)!r} (now {now.get(name)!r})"
            for name in before | now
            if before.get(name) != now.get(name)
        ]
        if changed:
            raise UserError(
                f"{self.path}: holds samples of other settings, {', '.join(changed)}: give the same, or another --out"
            )


def _encode(line: dict[str, Any]) -> bytes:
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"


def _entry(line: dict[str, Any], offset: int) -> Entry:
    samples = line["samples"]
    finished = [sample for sample in samples if _usable(sample)]
    return Entry(
        offsets=(offset,),
        digest=line["digest"],
        right=sum(sample["right"] for sample in finished),
        finished=len(finished),
        cut=len(samples) - len(finished),
        unprefixed=sum(not sample["prefixed"] for sample in samples),
    )


def _usable(sample: dict[str, Any]) -> bool:
    """A response that was cut teaches no end, an empty one nothing at all."""
    return bool(sample["text"]) and not sample["cut"]
