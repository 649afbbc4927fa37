"""JSON files and hashes of JSON values."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.output import atomic_text


def read_json(file: Path, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    """Reads a JSON object from a file.

    Args:
        file: the file.
        missing: what to return where there is no such file; None refuses that.

    Raises:
        UserError: the file cannot be read or does not contain a JSON object.
    """
    if missing is not None and not file.is_file():
        return missing
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        way = "save it as UTF-8 without a byte order mark" if "BOM" in str(error) else "copy the file again"
        raise UserError(f"{file}: not JSON ({error}): {way}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: not a JSON object: copy the file again")
    return content


def write_json(path: Path, value: Any, **options: Any) -> None:
    """Writes a value with a final line break, atomically; the options are those of ``json.dumps``."""
    with atomic_text(path) as stream:
        stream.write(json.dumps(value, **{"indent": 2, **options}) + "\n")


def json_hash(value: Any, **options: Any) -> str:
    """Returns the SHA-256 of a value as JSON, in hexadecimal digits; the options are those of ``json.dumps``."""
    return hashlib.sha256(json.dumps(value, **options).encode()).hexdigest()
