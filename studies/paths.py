"""Folders of the checkout that the studies read and write."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
"""The published pages, with their results and figures."""
ASSETS = Path(__file__).with_name("assets")
"""Templates of the pages."""
