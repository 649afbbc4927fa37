"""Checks of single fields of a row, shared by all readers: what is wrong, where, and how to mend it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from solopo_nemo.runtime.errors import UserError

_LARGEST_ID = 2**53
"""Of a float: larger ones may stand for several whole numbers."""


def bad_field(where: str, field: str, what: str) -> UserError:
    """Return the error for a field; the caller raises it."""
    return UserError(f"{where}: field {field}: {what}")


def has(row: Mapping[str, Any], field: str) -> bool:
    """Tell whether a field is there; Arrow files write an absent field as null."""
    return row.get(field) is not None


def required(row: Mapping[str, Any], field: str, where: str) -> Any:
    """Return a field that must be there.

    Raises:
        UserError: It is missing or null.
    """
    if not has(row, field):
        raise bad_field(where, field, f"missing (this row has {', '.join(map(str, row)) or 'no fields'})")
    return row[field]


def text(value: Any, field: str, where: str, *, may_be_blank: bool = False) -> str:
    """Return `value` if it is a usable string.

    Raises:
        UserError: Not a string, only white space, or with lone surrogates, which no tokenizer takes.
    """
    if not isinstance(value, str):
        raise bad_field(where, field, f"is {_kind(value)}, must be a string")
    if not may_be_blank and not value.strip():
        raise bad_field(where, field, "is empty, must hold text")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise bad_field(
                where, field, f"half a surrogate pair at character {error.start}, not valid text"
            ) from error
    return value


def text_list(value: Any, field: str, where: str) -> tuple[str, ...]:
    """Return a list of usable strings, which may be empty.

    Raises:
        UserError: Not a list, or one of its items is not usable.
    """
    if not isinstance(value, list):
        raise bad_field(where, field, f"is {_kind(value)}, must be a list of strings")
    return tuple(text(item, f"{field}[{index}]", where) for index, item in enumerate(value))


def records(value: Any, field: str, where: str) -> list[dict[str, Any]]:
    """Return a list of objects.

    Raises:
        UserError: Not a list, an empty one, or an item that is not an object.
    """
    if not isinstance(value, list):
        raise bad_field(where, field, f"is {_kind(value)}, must be a list of objects")
    if not value:
        raise bad_field(where, field, "is empty, must hold at least one object")
    for index, item in enumerate(value):
        if not isinstance(item, dict):
            raise bad_field(where, f"{field}[{index}]", f"is {_kind(item)}, must be an object")
    return value


def plain_json(value: Any, field: str, where: str, *, may_hold_null: bool = False) -> Any:
    """Return a value that a file of JSON can hold.

    Raises:
        UserError: It is none, or has a null inside, which may stand for an absent key in an Arrow file.
    """
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise bad_field(where, field, f"is not plain JSON ({error})") from error
    if not may_hold_null and _holds_null(value):
        what = "holds null, which Arrow files write for an absent key as well: leave it out, or give JSON as a string"
        raise bad_field(where, field, what)
    return value


def identifier(value: Any, where: str) -> str:
    """Return a row's id, a string or a whole number, as a string.

    pandas writes the ids 17 and 18 as 17.0 and 18.0 where another row has none: 17.0 is 17.

    Raises:
        UserError: Anything else.
    """
    if isinstance(value, float):
        if not value.is_integer() or abs(value) > _LARGEST_ID:
            raise bad_field(where, "id", f"is {value}, must be a string or a whole number of at most 2**53")
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return text(value, "id", where)


def _holds_null(value: Any) -> bool:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return value is None or any(map(_holds_null, inside))


def _kind(value: Any) -> str:
    names = {str: "a string", list: "a list", dict: "an object", bool: "a boolean", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")
