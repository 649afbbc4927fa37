"""A real server with a real model is scored as the model itself is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from llama_server import serving, write_gguf

import solopo_nemo
from solopo_nemo.evaluation.models import ModelSettings
from solopo_nemo.evaluation.run import evaluate
from solopo_nemo.evaluation.settings import SuiteSettings
from solopo_nemo.evaluation.suites import SUITES

pytestmark = pytest.mark.slow

ASSET = Path(solopo_nemo.__file__).parent / "assets" / "tiny_qwen2"
QUESTIONS = 12


def test_a_server_answers_as_the_model_it_serves(tmp_path: Path) -> None:
    write_gguf(ASSET, tmp_path / "tiny.gguf")
    suite, settings = [SUITES["builtin"]], SuiteSettings(tmp_path / "data", limit=QUESTIONS)
    with serving(tmp_path / "tiny.gguf", tmp_path / "requests", "--name", "tiny", "--slots", 4, "--context", 2048) as (
        _,
        port,
    ):
        address = f"http://127.0.0.1:{port}/v1"
        remote = evaluate(ModelSettings("tiny", base_url=address, concurrency=4), suite, settings, tmp_path / "remote")
    local = evaluate(ModelSettings(str(ASSET)), suite, settings, tmp_path / "local")

    said = {where: _responses(tmp_path / where) for where in ("remote", "local")}
    assert said["remote"].keys() == said["local"].keys()
    assert len(said["local"]) == 4 * QUESTIONS
    # llama.cpp keeps keys and values in half precision: on long contexts, where the model is unsure, words may differ
    for length in (1, 2):
        assert [v for k, v in said["remote"].items() if k[0] == f"{length}x"] == [
            v for k, v in said["local"].items() if k[0] == f"{length}x"
        ]
        means = [
            frame[frame["length"] == length]["value"].mean()
            for frame in (measured.suites["builtin"] for measured in (remote, local))
        ]
        assert means[0] == means[1] > 0.5


def _responses(folder: Path) -> dict[tuple[str, str], str]:
    return {
        (path.stem, sample["id"]): sample["response"].strip()
        for path in (folder / "cells" / "builtin").glob("*.json")
        for sample in json.loads(path.read_text())["samples"]
    }
