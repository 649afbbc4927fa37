"""Reads ``metrics.jsonl``. It imports neither NeMo nor torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a metrics file; an empty list if there is no file."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break  # a kill has cut the last line short
    return rows
