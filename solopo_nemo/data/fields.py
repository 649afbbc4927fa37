"""Checks of single fields of a row, shared by all readers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date, time
from typing import Any

from solopo_nemo.runtime.errors import UserError

_LARGEST_ID = 2**53
"""Largest id that is accepted as a float. A larger float does not identify one integer."""


def bad_field(where: str, field: str, what: str) -> UserError:
    """Return the error for a field; the caller raises it."""
    return UserError(f"{where}: field {field}: {what}")


def has(row: Mapping[str, Any], field: str) -> bool:
    """True if a field is present and not null. Arrow files store an absent field as null."""
    return row.get(field) is not None


def required(row: Mapping[str, Any], field: str, where: str) -> Any:
    """Return a required field.

    Raises:
        UserError: The field is missing or null.
    """
    if not has(row, field):
        raise bad_field(where, field, f"missing (this row has {', '.join(map(str, row)) or 'no fields'})")
    return row[field]


def text(value: Any, field: str, where: str, *, may_be_blank: bool = False) -> str:
    """Return `value` if it is a usable string.

    Raises:
        UserError: The value is not a string, is blank, or contains lone surrogates, which no tokenizer accepts.
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


def required_text(row: Mapping[str, Any], field: str, where: str, inside: str = "") -> str:
    """Return a required field that is a usable string.

    Args:
        row: The row, or an object in it.
        field: The field.
        where: Location of the row, for messages.
        inside: Path of the object in the row, such as `paragraphs[3]`; empty for the row itself.

    Raises:
        UserError: The field is missing, or its value is no usable string.
    """
    place, path = (f"{where}: field {inside}", f"{inside}.{field}") if inside else (where, field)
    return text(required(row, field, place), path, where)


def used_id(identity: str, where: str) -> UserError:
    """Return the error for an id that an earlier row has."""
    return bad_field(where, "id", f"{identity!r} was used by an earlier row, ids must be unique")


def note_id(identity: str, seen: set[str], where: str) -> None:
    """Add the id of a row to those before it.

    Raises:
        UserError: An earlier row has it.
    """
    if identity in seen:
        raise used_id(identity, where)
    seen.add(identity)


def text_list(value: Any, field: str, where: str) -> tuple[str, ...]:
    """Return a list of usable strings. The list may be empty.

    Raises:
        UserError: The value is not a list, or an item is not a usable string.
    """
    if not isinstance(value, list):
        raise bad_field(where, field, f"is {_kind(value)}, must be a list of strings")
    return tuple(text(item, f"{field}[{index}]", where) for index, item in enumerate(value))


def required_list(row: Mapping[str, Any], field: str, where: str) -> tuple[str, ...]:
    """Return a required list of usable strings.

    Raises:
        UserError: The field is missing, the list is empty, or as in `text_list`.
    """
    found = text_list(required(row, field, where), field, where)
    if not found:
        raise bad_field(where, field, "is empty, must hold at least one string")
    return found


def records(value: Any, field: str, where: str) -> list[dict[str, Any]]:
    """Return a non-empty list of objects.

    Raises:
        UserError: The value is not a list, the list is empty, or an item is not an object.
    """
    if not isinstance(value, list):
        way = ": put this one into a list" if isinstance(value, dict) else ""
        raise bad_field(where, field, f"is {_kind(value)}, must be a list of objects{way}")
    if not value:
        raise bad_field(where, field, "is empty, must hold at least one object")
    for index, item in enumerate(value):
        if not isinstance(item, dict):
            raise bad_field(where, f"{field}[{index}]", f"is {_kind(item)}, must be an object")
    return value


def plain_json(value: Any, field: str, where: str, *, may_hold_null: bool = False) -> Any:
    """Return a value as JSON gives it back; dates and times, which Arrow files hold, become ISO text.

    Raises:
        UserError: The value cannot be written as JSON; or it contains null, which can stand for an absent key in an
            Arrow file, and `may_hold_null` is false.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_iso_text)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise bad_field(where, field, f"is not plain JSON ({error})") from error
    if not may_hold_null and _holds_null(value):
        what = "holds null, which Arrow files write for an absent key as well: leave it out, or give JSON as a string"
        raise bad_field(where, field, what)
    return json.loads(text)


def _iso_text(value: Any) -> str:
    if isinstance(value, date | time):
        return value.isoformat()
    raise TypeError(f"holds {_kind(value)}: write it as a string")


def identifier(value: Any, where: str) -> str:
    """Return the id of a row as a string. The value is a string or an integer.

    An integral float such as 17.0 is read as 17, because pandas writes integer ids as floats if a row has no id.

    Raises:
        UserError: The value is something else.
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
