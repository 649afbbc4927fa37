"""Model folders with one thing changed: read with the values of the transformers that wrote them, or refused."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import hf_models
import plain_decoder
import pytest
import torch
from folder_fuzz import BASES, Case, cases
from plain_decoder import Values
from safetensors.torch import load_file, save_file
from true_values import true_values
from zygote import forking

from solopo_nemo.families import hf
from solopo_nemo.families.description import ModelDescription
from solopo_nemo.families.weights import find_weights
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.isolated import run_isolated

CASES = cases()
TOLERANCE = 2e-5
"""Largest difference of two logits in fp32, as a part of the largest logit."""
IDS = (torch.arange(200) * 7 % hf_models.SIZES["vocab_size"]).tolist()


def describe(case: Case) -> ModelDescription:
    return ModelDescription.from_hf(case.config, "config.json")


def full(values: Values) -> Values:
    """With the defaults of a scaling filled in."""
    scaling = values.scaling and {k: v for k, v in values.scaling.items() if v is not None}
    if scaling and scaling["rope_type"] == "yarn":
        scaling.setdefault("original_max_position_embeddings", values.window)
    return replace(values, scaling=scaling)


def test_all_are_read_as_meant_or_refused() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 2000
    assert sum(case.read for case in CASES) >= 500
    for case in CASES:
        try:
            model = describe(case)
        except UserError as error:
            assert not case.read, (case.name, str(error))
            assert "config.json: " in str(error), case.name
            continue
        assert case.read, f"{case.name} was read"
        values, kv_heads = true_values(case.config, case.five)
        sliding = tuple(model.sliding_window if on else None for on in model.sliding_layers)
        got = Values(
            model.num_attention_heads, model.head_dim, model.rope_theta, model.rope_scaling,
            model.max_position_embeddings, model.rms_norm_eps, sliding,
        )  # fmt: skip
        assert got == full(values), case.name
        assert model.num_key_value_heads == kv_heads, case.name
        stated = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
        assert all(getattr(model, key) == case.config[key] for key in stated), case.name
        assert model.tie_word_embeddings == case.config.get("tie_word_embeddings", False), case.name
        copied = ModelDescription.from_hf(case.config | model.changes(), "config.json")
        assert (copied, copied.changes()) == (model, {}), case.name
        both = true_values(copied.source, False), true_values(copied.source, True)
        assert full(both[0][0]) == full(both[1][0]), f"{case.name}: an export is read in two ways"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of each family, in two shards."""
    root = tmp_path_factory.mktemp("families")
    for family, base in BASES.items():
        model = ModelDescription.from_hf({"model_type": family} | base)
        hf_models.make_random(model.transformers_config(), root / family, torch.float32, "1MB")
        (root / family / "config.json").write_text(json.dumps(model.source))
    return {family: root / family for family in BASES}


def forwards(folders: dict[str, Path]) -> dict[str, tuple[Case, Values]]:
    """Cases that the weights fit, no two with the same values."""
    found: dict[str, tuple[Case, Values]] = {}
    for case in CASES:
        if case.read:
            model, values = describe(case), full(true_values(case.config, case.five)[0])
            try:
                find_weights(folders[model.model_type], model)
            except UserError:
                continue
            found.setdefault(f"{model.model_type} {values}", (case, values))
    return found


def test_transformers_computes_the_true_values(folders: dict[str, Path]) -> None:
    """transformers, given the description, against the plain decoder, given the true values."""
    from transformers import AutoModelForCausalLM

    found = forwards(folders)
    for case, values in found.values():
        folder = folders[case.config["model_type"]]
        model: Any = AutoModelForCausalLM.from_pretrained(folder, config=describe(case).transformers_config())
        with torch.no_grad():
            got = model(torch.tensor([IDS])).logits[0]
        want = plain_decoder.logits(plain_decoder.weights_of(folder), values, IDS)
        assert float((got - want).abs().max() / want.abs().max()) < TOLERANCE, case.name
    assert len(found) >= 60


@pytest.mark.slow
@forking()
def test_megatron_computes_the_true_values(folders: dict[str, Path], tmp_path: Path) -> None:
    """A few of each family, through the whole import, one process for all."""
    found = [*forwards(folders).values()]
    chosen = [
        pair
        for family in BASES
        for pair in random.Random(1).sample([p for p in found if p[0].config["model_type"] == family], 4)
    ]
    for number, (case, _) in enumerate(chosen):
        folder = Path(shutil.copytree(folders[case.config["model_type"]], tmp_path / str(number)))
        (folder / "config.json").write_text(json.dumps(case.config))
    names = [str(number) for number in range(len(chosen))]
    logits = run_isolated("the imports", hf_models.megatron_logits, tmp_path, names)
    for name, (case, values) in zip(names, chosen, strict=True):
        weights = plain_decoder.weights_of(tmp_path / name)
        for got, ids in zip(logits[name], hf_models.IDS, strict=True):
            want = plain_decoder.logits(weights, values, ids.tolist())
            assert float((got - want).abs().max() / want.abs().max()) < TOLERANCE, case.name


def edit(file: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
        change(content)
        (folder / file).write_text(json.dumps(content))

    return apply


def text(file: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_text(content)


def whole_beside_shards(folder: Path) -> None:
    save_file({k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}, folder / SINGLE)


def stale_index(folder: Path) -> None:
    shards = sorted(folder.glob("*.safetensors"))
    whole_beside_shards(folder)
    for shard in shards:
        shard.unlink()


SINGLE, INDEX, GENERATION = "model.safetensors", "model.safetensors.index.json", "generation_config.json"
NORM = "model.norm.weight"
FOLDERS: dict[str, tuple[Callable[[Path], object], bool]] = {
    "untouched": (lambda folder: None, True),
    "no generation config": (lambda folder: (folder / GENERATION).unlink(), True),
    "generation config empty": (text(GENERATION, "{}"), True),
    "generation config broken": (text(GENERATION, "{"), False),
    "generation config a list": (text(GENERATION, "[]"), False),
    "end tokens": (edit(GENERATION, lambda c: c.update(eos_token_id=[2, 3])), True),
    "end token null": (edit(GENERATION, lambda c: c.update(eos_token_id=None)), True),
    "end token text": (edit(GENERATION, lambda c: c.update(eos_token_id="</s>")), False),
    "end token true": (edit(GENERATION, lambda c: c.update(eos_token_id=True)), False),
    "end tokens nested": (edit(GENERATION, lambda c: c.update(eos_token_id=[[2]])), False),
    "padding a fraction": (edit(GENERATION, lambda c: c.update(pad_token_id=0.5)), False),
    "no index": (lambda folder: (folder / INDEX).unlink(), False),
    "index empty": (text(INDEX, "{}"), False),
    "index a list": (text(INDEX, "[]"), False),
    "index broken": (text(INDEX, "{"), False),
    "map a list": (edit(INDEX, lambda c: c.update(weight_map=[])), False),
    "map without a tensor": (edit(INDEX, lambda c: c["weight_map"].pop(NORM)), False),
    "map with another tensor": (edit(INDEX, lambda c: c["weight_map"].update(extra=c["weight_map"][NORM])), False),
    "map to a number": (edit(INDEX, lambda c: c["weight_map"].update({NORM: 7})), False),
    "map to another folder": (edit(INDEX, lambda c: c["weight_map"].update({NORM: "../x.safetensors"})), False),
    "map to no file": (edit(INDEX, lambda c: c["weight_map"].update({NORM: "x.safetensors"})), False),
    "metadata gone": (edit(INDEX, lambda c: c.pop("metadata")), True),
    "a new key": (edit(INDEX, lambda c: c.update(more=1)), True),
    "one file beside the shards": (whole_beside_shards, False),
    "one file and a stale index": (stale_index, True),
}


@pytest.mark.parametrize("family", BASES)
@pytest.mark.parametrize("name", FOLDERS)
def test_other_files_of_a_folder(name: str, family: str, folders: dict[str, Path], tmp_path: Path) -> None:
    change, read = FOLDERS[name]
    folder = Path(shutil.copytree(folders[family], tmp_path / "model"))
    change(folder)
    try:
        found = find_weights(folder, hf.read_config(folder))
    except UserError as error:
        assert not read, error
        assert str(folder) in str(error)
        return
    assert read
    want = plain_decoder.weights_of(folders[family])
    assert set(found.files) == set(want)
    assert all(torch.equal(load_file(path)[name], want[name]) for name, path in found.files.items())
