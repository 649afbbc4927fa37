"""Folders that the package brings along."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]

ASSETS = _PACKAGE / "assets"
"""Templates of pages, shapes of public models, and the embedded model."""

CONF = _PACKAGE.parent / "conf"
"""The YAML defaults of every recipe."""

EMBEDDED_MODEL = ASSETS / "tiny_qwen2"
"""The Hugging Face folder that ``model.init=builtin`` names."""
