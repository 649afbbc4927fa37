"""The output folder of a run in place of its model: every reader names the model in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from solopo_nemo.data.tokenizer_files import load_tokenizer
from solopo_nemo.evaluation.models import EvaluatedModel, ModelSettings
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.paths import EMBEDDED_MODEL
from solopo_nemo.training.prepare import find_model

READERS: dict[str, Callable[[Path], object]] = {
    "a tokenizer": load_tokenizer,
    "a model to train": lambda folder: find_model(str(folder)),
    "a model to evaluate": lambda folder: EvaluatedModel(ModelSettings(str(folder)), folder),
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_the_model_in_a_run_folder_is_named(reader: Callable[[Path], object], tmp_path: Path) -> None:
    shutil.copytree(EMBEDDED_MODEL, tmp_path / "hf")
    with pytest.raises(UserError, match=rf"whose model is in {tmp_path / 'hf'}: give that"):
        reader(tmp_path)
