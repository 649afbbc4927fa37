"""The commands of the studies: what studies/pyproject.toml registers as entry points."""

from __future__ import annotations

from pathlib import Path

import tomllib

_PROJECT = tomllib.loads((Path(__file__).parents[2] / "studies" / "pyproject.toml").read_text())
STUDIES = {
    name: place.removesuffix(":main") for name, place in _PROJECT["project"]["entry-points"]["solopo.commands"].items()
}
"""Module of each command."""
