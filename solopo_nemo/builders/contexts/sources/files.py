"""Rows of a source file: the formats of the data readers, and JSON arrays, which are streamed by element."""

from __future__ import annotations

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from solopo_nemo.data.rows import Row, json_row, read_json_lines, read_rows
from solopo_nemo.runtime.errors import UserError

_ARRAY_SUFFIXES = (".json", ".json.gz")
_CHUNK_BYTES = 1 << 20
# a plain array, or SQuAD's object: {"version": ..., "data": [
_OPENING = re.compile(r'\ufeff?\s*(?:\{\s*(?:"version"\s*:\s*"[^"]*"\s*,\s*)?"data"\s*:\s*)?\[')
_BETWEEN = re.compile(r"[\s,]*")
_NOT_UTF8 = re.compile("[\udc80-\udcff]")
_DECODER = json.JSONDecoder()


def read_source_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a source. A `.json` file can contain an array, SQuAD's object or JSON lines.

    Raises:
        UserError: The file is missing or its type is unknown.
    """
    if path.name.endswith(_ARRAY_SUFFIXES):
        if not path.is_file():
            raise UserError(f"{path}: no such file: check the path")
        yield from _read_array(path)
    else:
        yield from read_rows(path)


def _open(path: Path) -> IO[bytes]:
    # typeshed declares different types for the two openers
    return cast("IO[bytes]", gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb"))


def _read_array(path: Path) -> Iterator[Row]:
    """Yield the elements of an array. The first unreadable element ends it, because the next one cannot be located."""
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
