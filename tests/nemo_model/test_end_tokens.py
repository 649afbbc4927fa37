"""An export stops at the tokens with which training ended the answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from solopo_nemo.nemo_model.end_tokens import RUN_RECORD, add_end_tokens, lacking_end_tokens

# eos_token_id of config.json and of generation_config.json (False: no file), trained; then what the export has
CASES: dict[str, tuple[Any, Any, list[int], Any, Any]] = {
    "another token": (5, 5, [7], [7, 5], [7, 5]),
    "another one in the generation alone": (7, 5, [7], 7, [7, 5]),
    "among several": ([5, 7], [5, 7], [7], [5, 7], [5, 7]),
    "the same": (7, 7, [7], 7, 7),
    "two trained": (7, [7, 5], [7, 9], [9, 7], [9, 7, 5]),
    "none stated": (None, None, [7], [7], [7]),
    "no generation file": (5, False, [7], [7, 5], [7, 5]),
    "no generation file, the same": (7, False, [7], 7, False),
    "no run": (5, 5, [], 5, 5),
}


def write(folder: Path, config: Any, generation: Any) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "pad_token_id": 3, "eos_token_id": config}))
    if generation is not False:
        (folder / "generation_config.json").write_text(json.dumps({"top_p": 0.8, "eos_token_id": generation}))


def stated(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())["eos_token_id"] if (folder / name).is_file() else False


@pytest.mark.parametrize("case", CASES)
def test_missing_ends_are_added(case: str, tmp_path: Path) -> None:
    config, generation, trained, config_then, generation_then = CASES[case]
    checkpoint, export = tmp_path / "checkpoint", tmp_path / "export"
    checkpoint.mkdir()
    if trained:
        (checkpoint / RUN_RECORD).write_text(json.dumps({"end_tokens": trained}))
    write(export, config, generation)
    before = {path.name: path.read_bytes() for path in export.iterdir()}
    add_end_tokens(checkpoint, export)
    assert stated(export, "config.json") == config_then
    assert stated(export, "generation_config.json") == generation_then
    assert lacking_end_tokens(checkpoint, export) == {}
    if (config, generation) == (config_then, generation_then):
        assert before == {path.name: path.read_bytes() for path in export.iterdir()}, "to the byte"
    else:
        kept = json.loads((export / "generation_config.json").read_text())
        assert kept.get("top_p") == (None if generation is False else 0.8)
        assert generation is not False or kept["pad_token_id"] == 3
