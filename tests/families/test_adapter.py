"""Folders of adapters: what peft writes is read, what is written peft loads, and merging is peft's merging."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import SIZES, make_random
from safetensors.torch import load_file, save_file

from solopo_nemo.families.adapter import SETTINGS, WEIGHTS, merge_adapter, read_adapter, write_adapter
from solopo_nemo.families.hf import read_config
from solopo_nemo.runtime.errors import UserError

TARGETS = ["q_proj", "v_proj", "down_proj"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import AutoConfig

    folder = tmp_path_factory.mktemp("model")
    make_random(AutoConfig.for_model("qwen3", **SIZES, head_dim=24), folder, torch.bfloat16, "300KB")
    return folder


def adapted(model: Path, **settings: Any) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"r": 3, "lora_alpha": 5, "target_modules": TARGETS} | settings
    made: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(model), LoraConfig(**options))
    for name, parameter in made.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, 0, 0.1)
    return made


@pytest.fixture(scope="module")
def folder(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that peft wrote."""
    path = tmp_path_factory.mktemp("adapter")
    adapted(model).save_pretrained(path)
    return path


def test_what_peft_writes_is_read_and_what_is_written_peft_loads(model: Path, folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    found = read_adapter(folder, read_config(model))
    assert (found.rank, found.alpha, found.targets) == (3, 5.0, tuple(TARGETS))
    layers = range(SIZES["num_hidden_layers"])
    tensors = {(i, name, half): found.tensor(i, name, half) for i in layers for name in TARGETS for half in "AB"}
    write_adapter(tmp_path, tensors, str(model), found.rank, found.alpha, 0.0)
    want, got = (load_file(path / WEIGHTS) for path in (folder, tmp_path))
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)
    ids = torch.arange(40)[None]
    logits = [
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), path)(ids).logits
        for path in (folder, tmp_path)
    ]
    assert torch.equal(*logits)


def test_merging_is_pefts(model: Path, folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    merge_adapter(model, folder, tmp_path)
    got = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).state_dict()
    base: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    untouched = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    want = PeftModel.from_pretrained(base, folder).merge_and_unload().state_dict()
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        torch.testing.assert_close(got[name], tensor, rtol=2**-7, atol=1e-6)  # it is written in bf16
        assert torch.equal(tensor, untouched[name]) == (name.split(".")[-2] not in TARGETS)


def edit(folder: Path, **changes: Any) -> None:
    file = folder / SETTINGS
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def tensors(folder: Path, change: Any) -> None:
    held = load_file(folder / WEIGHTS)
    change(held)
    save_file(held, folder / WEIGHTS)


LAYER = "base_model.model.model.layers.1."
REFUSED: dict[str, tuple[Any, str]] = {
    "no weights": (lambda f: (f / WEIGHTS).unlink(), f"{WEIGHTS}: give a folder"),
    "no settings": (lambda f: (f / SETTINGS).unlink(), f"{SETTINGS}: give a folder"),
    "settings that are no JSON": (lambda f: (f / SETTINGS).write_text("{"), "not JSON"),
    "another method": (lambda f: edit(f, peft_type="IA3"), "no LoRA adapter"),
    "no rank": (lambda f: edit(f, r=None), "no LoRA adapter"),
    "DoRA": (lambda f: edit(f, use_dora=True), "use_dora=True"),
    "another scale": (lambda f: edit(f, use_rslora=True), "use_rslora=True"),
    "ranks of their own": (lambda f: edit(f, rank_pattern={"q_proj": 8}), "rank_pattern"),
    "trained biases": (lambda f: edit(f, bias="all"), "bias=all"),
    "whole modules": (lambda f: edit(f, modules_to_save=["lm_head"]), "modules_to_save"),
    "another rank": (lambda f: edit(f, r=4), "r=4"),
    "cut weights": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-9]), "safetensors"),
    "an adapter of the head": (
        lambda f: tensors(f, lambda t: t.update({"base_model.model.lm_head.lora_A.weight": torch.ones(3, 4)})),
        "lm_head",
    ),
    "a layer without": (lambda f: tensors(f, lambda t: t.pop(f"{LAYER}self_attn.q_proj.lora_B.weight")), "in layer 1"),
    "another model": (
        lambda f: tensors(f, lambda t: t.update({f"{LAYER}self_attn.v_proj.lora_B.weight": torch.ones(7, 3)})),
        "has shape [7, 3]",
    ),
    "nothing": (lambda f: tensors(f, dict.clear), "any module"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_another_folder_is_refused(case: str, model: Path, folder: Path, tmp_path: Path) -> None:
    import shutil

    spoil, words = REFUSED[case]
    spoil(shutil.copytree(folder, tmp_path / "adapter"))
    with pytest.raises(UserError) as refused:
        read_adapter(tmp_path / "adapter", read_config(model))
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
