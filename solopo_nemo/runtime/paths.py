"""Folders that the package brings along."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]

ASSETS = _PACKAGE / "assets"
"""Templates of pages, shapes of public models, the embedded model, and the scripts for Slurm."""

CONF = (_PACKAGE / "conf").resolve()
"""The YAML defaults of every recipe. In a checkout ``solopo_nemo/conf`` is a link to ``conf``."""

EMBEDDED_MODEL = ASSETS / "tiny_qwen2"
"""The Hugging Face folder that ``model.init=builtin`` names."""

EMBEDDED_PAIRS = ASSETS / "tiny_qwen2_pairs.jsonl.gz"
"""The answers that ``data.train=builtin`` trains on, sampled from that model."""
