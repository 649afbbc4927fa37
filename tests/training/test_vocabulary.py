"""Token ids beyond the model's vocabulary: refused by every recipe before any weight is read, at any layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from bad_input import ROW, add_token, write

from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.paths import EMBEDDED_MODEL
from solopo_nemo.training import checks
from solopo_nemo.training.launch import run_recipe
from solopo_nemo.training.paths import Paths

LAYOUTS = [["parallel.tensor=1"], ["parallel.tensor=2", "parallel.data=1"]]
RECIPES = sorted(file.stem for file in (Path(__file__).parents[2] / "recipes").glob("*.py"))
SIZE = json.loads((EMBEDDED_MODEL / "config.json").read_text())["vocab_size"]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The embedded model with one more token than embeddings, and no import of its weights."""
    import_hf = "solopo_nemo.nemo_model.convert.import_hf"
    monkeypatch.setattr(import_hf, lambda _, destination, **__: destination.mkdir(parents=True))
    shutil.copytree(EMBEDDED_MODEL, tmp_path / "model")
    add_token(tmp_path / "model", "<|tool|>")
    return tmp_path / "model"


def start(model: Path, *overrides: str, recipe: str = "solo_dpo", only_reference: bool = False) -> int:
    """Run a recipe up to its ranks, which are only counted."""
    words = [f"model.init={model}", f"output_dir={model.parent / 'run'}", "data.max_tokens=500", *overrides]
    return run_recipe(recipe, words, only_reference, start=lambda ranks, _: 100 + ranks)


def rows_of(model: Path, **changes: Any) -> str:
    rows = [ROW | {"id": str(number)} for number in range(3)]
    return f"data.train={write(model.parent / 'rows.jsonl', [*rows, ROW | {'id': 'last'} | changes])}"


def test_what_nobody_sees_may_lie_beyond(model: Path) -> None:
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": "<|tool|>"}))
    assert start(model, rows_of(model), *LAYOUTS[1]) == 102


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda words: words[0])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_token_that_is_used(recipe: str, layout: list[str], model: Path) -> None:
    prompt = [{"role": "user", "content": "Call <|tool|> now."}]
    beyond = rf"rows\.jsonl:4: field prompt_(long|short): token '<\|tool\|>' has id {SIZE}, .*vocab_size={SIZE}:"
    with pytest.raises(UserError, match=beyond):
        start(model, rows_of(model, prompt_short=prompt, prompt_long=prompt), *layout, recipe=recipe)
    assert not Paths(model.parent / "run").tokenized.exists()


def test_the_cached_reference_and_data_prepared_before_are_checked_too(model: Path) -> None:
    data = rows_of(model, prompt_long=[{"role": "user", "content": "Call <|tool|> now."}])
    config = model / "config.json"
    text = config.read_text()
    config.write_text(text.replace(f'"vocab_size": {SIZE}', f'"vocab_size": {SIZE + 128}'))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks, "find_weights", lambda *_: None)
        assert start(model, data) == 101
    config.write_text(text)
    for only_reference in (False, True):
        with pytest.raises(UserError, match=rf"rows\.jsonl:4: field prompt_long: .*vocab_size={SIZE}:"):
            start(model, data, only_reference=only_reference)
