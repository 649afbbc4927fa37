"""The initial weights of a run: imported once, hashed once, and refused when they were replaced."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from solopo_nemo.config.schema import load_config
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.paths import EMBEDDED_MODEL
from solopo_nemo.training import checks
from solopo_nemo.training import start as inputs
from solopo_nemo.training.checkpoints.files import saved_checkpoints
from solopo_nemo.training.paths import Paths
from solopo_nemo.training.prepare import import_weights

OLD = 10**9
CONFIG = (EMBEDDED_MODEL / "config.json").read_text()


def write(model: Path, content: str, age: int = OLD) -> None:
    model.mkdir(exist_ok=True)
    for name, text in (("config.json", CONFIG), ("model.safetensors", content)):
        (model / name).write_text(text)
        os.utime(model / name, (age, age))


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A model, an output folder, and what was imported and hashed."""
    seen = SimpleNamespace(model=tmp_path / "model", paths=Paths(tmp_path / "run"), imports=0, hashes=0)
    write(seen.model, "first")
    hash_weights = inputs.hash_weights

    def count_import(source: Path, destination: Path, **_: Any) -> None:
        destination.mkdir(parents=True)
        seen.imports += 1

    def count_hash(*arguments: Any) -> str:
        seen.hashes += 1
        return hash_weights(*arguments)

    monkeypatch.setattr("solopo_nemo.nemo_model.convert.import_hf", count_import)

    def start() -> None:
        begun = inputs.Start(config, 1)
        vars(begun)["settled"] = saved_checkpoints(seen.paths.checkpoints)
        begun.check_same_weights()
        import_weights(begun)

    monkeypatch.setattr(inputs, "hash_weights", count_hash)
    config = load_config("solo_dpo", [f"model.init={seen.model}", f"output_dir={seen.paths.output}"])
    seen.start = start
    return seen


def test_unchanged_files_are_neither_imported_nor_hashed_again(imported: SimpleNamespace) -> None:
    imported.start()
    imported.start()
    assert (imported.imports, imported.hashes) == (1, 1)


def test_touched_files_are_hashed_again_and_not_imported(imported: SimpleNamespace) -> None:
    imported.start()
    write(imported.model, "first", OLD + 1)
    imported.start()
    imported.start()
    assert (imported.imports, imported.hashes) == (1, 2)


def test_a_tokenizer_that_changed_before_anything_was_saved_is_taken(imported: SimpleNamespace) -> None:
    template, taken = imported.model / "chat_template.jinja", imported.paths.initial / "hf" / "chat_template.jinja"
    template.write_text("first")
    imported.start()
    assert taken.read_text() == "first"
    template.write_text("other")
    imported.start()
    assert taken.read_text() == "other"
    template.unlink()
    imported.start()
    assert not taken.exists()
    assert (imported.imports, imported.hashes) == (1, 1)


def test_the_marker_of_an_earlier_version_is_read(imported: SimpleNamespace) -> None:
    imported.start()
    marker = imported.paths.initial / "source.json"
    marker.write_text(json.dumps({"weights": json.loads(marker.read_text())["weights"]}) + "\n")
    imported.start()
    assert (imported.imports, imported.hashes) == (1, 2)


def test_other_weights_are_imported_where_nothing_was_saved(imported: SimpleNamespace) -> None:
    imported.start()
    write(imported.model, "other", OLD + 1)
    imported.start()
    assert imported.imports == 2


def test_other_weights_are_refused_where_a_run_goes_on(imported: SimpleNamespace) -> None:
    imported.start()
    (imported.paths.checkpoints / "step_000010").mkdir(parents=True)
    write(imported.model, "other", OLD + 1)
    with pytest.raises(UserError, match=r"started from other weights .* choose another output_dir, or trainer.resume"):
        imported.start()
    assert imported.imports == 1


def test_scores_that_other_weights_lack_are_no_fault_of_their_own(tmp_path: Path) -> None:
    begun = inputs.Start(load_config("solo_dpo", [f"output_dir={tmp_path}"]), 1)
    vars(begun)["settled"] = [tmp_path / "checkpoints" / "step_000001"]
    begun.refused["same_run"] = UserError("other weights")
    with pytest.raises(UserError, match="other weights"):
        checks._check_reference(begun)


def test_accuracy_before_training_is_that_of_the_weights_the_run_began_with(
    imported: SimpleNamespace, said: list[str]
) -> None:
    from solopo_nemo.training.launch import _initial_model

    imported.start()
    config = load_config("solo_dpo", [f"model.init={imported.model}", f"output_dir={imported.paths.output}"])
    assert _initial_model(config) == imported.model
    write(imported.model, "second", OLD + 10)
    assert _initial_model(config) is None
    imported.model.rename(imported.model.with_name("moved"))
    assert _initial_model(config) is None
    assert [message.rpartition(": ")[2] for message in said[-2:]] == [
        "it holds other weights now than at the start",
        "no such folder",
    ]
