"""Folders of adapters: what peft writes is read, what is written peft loads, and merging is peft's merging."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import MOE, SIZES, make_random
from safetensors.torch import load_file, save_file

from solopo_nemo.families.adapter import SETTINGS, WEIGHTS, merge_adapter, read_adapter, write_adapter
from solopo_nemo.families.hf import read_config
from solopo_nemo.runtime.errors import UserError

TARGETS = ["q_proj", "v_proj", "down_proj"]
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": SIZES | {"head_dim": 24},
    "qwen3_moe": SIZES | MOE | {"num_experts": 4, "mlp_only_layers": [0]},
    "mixtral": SIZES | {"num_local_experts": 3},
}
OWN_NAMES = {"mixtral": {"down_proj": "w2"}}
Made = tuple[Path, Path]
"""A model, and a folder that peft wrote for it."""


def adapted(model: Path, targets: list[str]) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=3, lora_alpha=5, target_modules=targets)
    made: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    for name, parameter in made.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, 0, 0.1)
    return made


@pytest.fixture(scope="module")
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    from transformers import AutoConfig

    family = getattr(request, "param", "qwen3")
    model, folder = (tmp_path_factory.mktemp(name) for name in ("model", "adapter"))
    make_random(AutoConfig.for_model(family, **FAMILIES[family]), model, torch.bfloat16, "300KB")
    adapted(model, [OWN_NAMES.get(family, {}).get(name, name) for name in TARGETS]).save_pretrained(folder)
    return model, folder


every_family = pytest.mark.parametrize("made", FAMILIES, indirect=True)


@every_family
def test_what_peft_writes_is_read_and_what_is_written_peft_loads(made: Made, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model, folder = made
    found = read_adapter(folder, read_config(model))
    assert (found.rank, found.alpha, found.targets) == (3, 5.0, tuple(TARGETS))
    layers = range(SIZES["num_hidden_layers"])
    tensors = {(i, name, half): found.tensor(i, name, half) for i in layers for name in TARGETS for half in "AB"}
    write_adapter(tmp_path, tensors, found.model, str(model), found.rank, found.alpha, 0.0)
    want, got = (load_file(path / WEIGHTS) for path in (folder, tmp_path))
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)
    ids = torch.arange(40)[None]
    logits = [
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), path)(ids).logits
        for path in (folder, tmp_path)
    ]
    assert torch.equal(*logits)


@every_family
def test_merging_is_pefts(made: Made, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model, folder = made
    merge_adapter(model, folder, tmp_path)
    got = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).state_dict()
    base: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    untouched = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    want = PeftModel.from_pretrained(base, folder).merge_and_unload().state_dict()
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        torch.testing.assert_close(got[name], tensor, rtol=2**-7, atol=1e-6)  # it is written in bf16
        assert torch.equal(tensor, untouched[name]) == (name.split(".")[-2] not in [*TARGETS, "w2"])


def edit(folder: Path, **changes: Any) -> None:
    file = folder / SETTINGS
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def put(folder: Path, name: str, *shape: int) -> None:
    save_file(load_file(folder / WEIGHTS) | {name: torch.ones(shape)}, folder / WEIGHTS)


def drop(folder: Path, name: str) -> None:
    save_file({n: t for n, t in load_file(folder / WEIGHTS).items() if n != name}, folder / WEIGHTS)


LAYER = "base_model.model.model.layers.1."
REFUSED: dict[str, tuple[Any, str]] = {
    "no weights": (lambda f: (f / WEIGHTS).unlink(), f"{WEIGHTS}: give a folder"),
    "no settings": (lambda f: (f / SETTINGS).unlink(), f"{SETTINGS}: give a folder"),
    "settings that are no JSON": (lambda f: (f / SETTINGS).write_text("{"), "not JSON"),
    "another method": (lambda f: edit(f, peft_type="IA3"), "no LoRA adapter"),
    "no rank": (lambda f: edit(f, r=None), "no LoRA adapter"),
    "DoRA": (lambda f: edit(f, use_dora=True), "use_dora=True"),
    "another scale": (lambda f: edit(f, use_rslora=True), "use_rslora=True"),
    "a base that was changed too": (
        lambda f: edit(f, init_lora_weights="pissa_niter_4"),
        "init_lora_weights=pissa_niter_4",
    ),
    "ranks of their own": (lambda f: edit(f, rank_pattern={"q_proj": 8}), "rank_pattern"),
    "trained biases": (lambda f: edit(f, bias="all"), "bias=all"),
    "whole modules": (lambda f: edit(f, modules_to_save=["lm_head"]), "modules_to_save"),
    "another rank": (lambda f: edit(f, r=4), "r=4"),
    "cut weights": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-9]), "safetensors"),
    "an adapter of the head": (lambda f: put(f, "base_model.model.lm_head.lora_A.weight", 3, 4), "lm_head"),
    "a layer without": (lambda f: drop(f, f"{LAYER}self_attn.q_proj.lora_B.weight"), "layers.1.self_attn.q_proj"),
    "another model": (lambda f: put(f, f"{LAYER}self_attn.v_proj.lora_B.weight", 7, 3), "has shape [7, 3]"),
    "nothing": (lambda f: save_file({}, f / WEIGHTS), "any module"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_another_folder_is_refused(case: str, made: Made, tmp_path: Path) -> None:
    refused(made, tmp_path, *REFUSED[case])


EXPERTS: dict[str, tuple[Any, str]] = {
    "an adapter of the router": (lambda f: put(f, f"{LAYER}mlp.gate.lora_A.weight", 3, 64), "leave gate out"),
    "an expert without": (
        lambda f: drop(f, f"{LAYER}mlp.experts.2.down_proj.lora_A.weight"),
        "experts.2.down_proj.lora_A",
    ),
    "more experts": (lambda f: put(f, f"{LAYER}mlp.experts.4.down_proj.lora_A.weight", 3, 40), "experts.4.down_proj"),
    "experts as one tensor": (lambda f: edit(f, target_parameters=["mlp.experts.gate_up_proj"]), "target_parameters"),
}


@pytest.mark.parametrize("made", ["qwen3_moe"], indirect=True)
@pytest.mark.parametrize("case", EXPERTS)
def test_other_adapters_of_experts_are_refused(case: str, made: Made, tmp_path: Path) -> None:
    refused(made, tmp_path, *EXPERTS[case])


def refused(made: Made, tmp_path: Path, spoil: Any, words: str) -> None:
    import shutil

    model, folder = made
    spoil(shutil.copytree(folder, tmp_path / "adapter"))
    with pytest.raises(UserError) as raised:
        read_adapter(tmp_path / "adapter", read_config(model))
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
