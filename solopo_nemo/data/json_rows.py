"""Rows of JSON files: lines, and arrays, which are streamed by element."""

from __future__ import annotations

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from solopo_nemo.runtime.errors import UserError

_CHUNK_BYTES = 1 << 20
# a plain array, or SQuAD's object: {"version": ..., "data": [
_OPENING = re.compile(r'\ufeff?\s*(?:\{\s*(?:"version"\s*:\s*"[^"]*"\s*,\s*)?"data"\s*:\s*)?\[')
_BETWEEN = re.compile(r"[\s,]*")
_NOT_UTF8 = re.compile("[\udc80-\udcff]")
_DECODER = json.JSONDecoder()
_ARRAY = "; a file that holds one array is named .json"


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


def _open(path: Path) -> IO[bytes]:
    # typeshed declares different types for the two openers
    return cast("IO[bytes]", gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb"))


def read_json_array(path: Path) -> Iterator[Row]:
    """Yield the elements of an array, of SQuAD's object, or the rows of JSON lines, of a file of any name.

    The first unreadable element ends it, because the next one cannot be located.
    """
    number = 0
    try:
        with _open(path) as stream:
            chunks = _decoded(stream)
            buffer = next(chunks, "")
            opening = _OPENING.match(buffer)
            if opening is None:
                yield from read_json_lines(path)
                return
            position = opening.end()
            while True:
                position = cast("re.Match[str]", _BETWEEN.match(buffer, position)).end()
                if buffer.startswith("]", position):
                    if rest := buffer[position + 1 :].strip(" \t\r\n}"):
                        yield Row(f"{path}: row {number}", None, f"text after the array: {rest[:20]!r}: remove it")
                    return
                try:
                    value, end = _DECODER.raw_decode(buffer, position)
                except (ValueError, RecursionError) as error:
                    # double the buffer, so that a long element is not parsed again for every chunk
                    more = _take(chunks, len(buffer) - position)
                    if not more:
                        problem = f"broken or truncated JSON ({error}): copy or download the file again"
                        yield Row(f"{path}: row {number}", None, problem)
                        return
                    buffer, position = buffer[position:] + more, 0
                    continue
                yield _element(value, f"{path}: row {number}", _NOT_UTF8.search(buffer, position, end))
                number += 1
                position = end
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        problem = f"truncated or damaged gzip file ({error}): copy or download it again"
        yield Row(f"{path}: row {number}", None, problem)


def _element(value: object, where: str, not_utf8: re.Match[str] | None) -> Row:
    if not_utf8:
        byte = ord(not_utf8.group()) - 0xDC00
        return Row(where, None, f"not UTF-8 text (byte 0x{byte:02x}): save the file as UTF-8")
    return json_row(value, where, "element")


def _decoded(stream: IO[bytes]) -> Iterator[str]:
    # surrogateescape: an invalid byte affects its own element only
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    while chunk := stream.read(_CHUNK_BYTES):
        yield decoder.decode(chunk)
    yield decoder.decode(b"", final=True)


def _take(chunks: Iterator[str], size: int) -> str:
    taken = ""
    for chunk in chunks:
        taken += chunk
        if len(taken) >= max(size, 1):
            break
    return taken


def read_json_lines(path: Path) -> Iterator[Row]:
    """Yield the rows of a JSON lines file of any name. A file with the suffix `.gz` is decompressed."""
    number = 0
    with _open(path) as stream:
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
        way = _ARRAY if line.lstrip().startswith(b"[") else ""
        return Row(
            where, None, f"broken JSON at column {error.colno} ({error.msg}): each line must be one JSON object{way}"
        )
    except (ValueError, RecursionError) as error:
        return Row(where, None, f"broken JSON ({error}): each line must be one JSON object")
    return json_row(value, where, "line")


def json_row(value: Any, where: str, unit: str) -> Row:
    """Return a decoded JSON value as a row. A value that is not an object becomes a row with a problem."""
    if not isinstance(value, dict):
        way = _ARRAY if isinstance(value, list) and unit == "line" else ""
        return Row(where, None, f"a JSON {type(value).__name__}: each {unit} must be one JSON object{way}")
    return Row(where, value)
