"""The end tokens of an exported model: ``eos_token_id`` has to contain the tokens that ended the training answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from solopo_nemo.families.reading import TOKEN_IDS
from solopo_nemo.runtime.json_files import read_json

RUN_RECORD = "run.json"
"""A run's record in its folder and in each checkpoint. ``end_tokens`` are the ids that end its training answers."""


def lacking_end_tokens(checkpoint: Path, folder: Path) -> dict[str, list[int]]:
    """The trained end tokens that ``eos_token_id`` of a Hugging Face folder lacks.

    Args:
        checkpoint: a checkpoint. One without a run's record has no trained end tokens.
        folder: folder with ``config.json``, which some programs read in place of ``generation_config.json``.

    Returns:
        Token ids by file name, for the files that lack some.
    """
    trained = read_json(checkpoint / RUN_RECORD, missing={}).get("end_tokens", [])
    lacking = {name: [i for i in trained if i not in _ids(content)] for name, content in _contents(folder).items()}
    return {name: ids for name, ids in lacking.items() if ids}


def add_end_tokens(checkpoint: Path, folder: Path) -> None:
    """Adds the trained end tokens that an exported folder lacks, before its other ``eos_token_id``."""
    for name, missing in lacking_end_tokens(checkpoint, folder).items():
        content = _contents(folder)[name]
        text = json.dumps(content | {"eos_token_id": [*missing, *_ids(content)]}, indent=2, ensure_ascii=False) + "\n"
        (folder / name).write_text(text, encoding="utf-8")


def _contents(folder: Path) -> dict[str, dict[str, Any]]:
    config, generation = read_json(folder / "config.json"), folder / "generation_config.json"
    # without this file transformers takes the ids from config.json
    stops = read_json(generation) if generation.is_file() else {k: config[k] for k in TOKEN_IDS if k in config}
    return {generation.name: stops, "config.json": config}


def _ids(content: dict[str, Any]) -> list[int]:
    stated = content.get("eos_token_id")
    return stated if isinstance(stated, list) else [] if stated is None else [stated]
