"""Runs of a small model with experts: exact resumption, another layout, adapters of the experts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import MOE, SIZES, make_random
from runs import rows, run
from safetensors.torch import load_file

from solopo_nemo.families.adapter import WEIGHTS, merge_adapter

pytestmark = [pytest.mark.distributed, pytest.mark.long]
RUN = [
    "model=custom",
    "evaluation.name=none",
    "model.moe_aux_loss=0.01",
    "model.moe_z_loss=0.001",
    "trainer.keep_checkpoints=5",
]
LORA = ["peft=lora", "peft.rank=4", "peft.alpha=8", "peft.merge=true", "optim.lr=1e-3"]
SPLIT = ["parallel.tensor=2", "parallel.sequence=true", "parallel.expert=2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3-MoE of three layers, the first without experts."""
    from transformers import AutoConfig

    folder = tmp_path_factory.mktemp("model")
    sizes = SIZES | MOE | dict(num_hidden_layers=3, mlp_only_layers=[0], max_position_embeddings=4096)
    make_random(AutoConfig.for_model("qwen3_moe", **sizes), folder, torch.float32, "5GB")
    return folder


def trained(model: Path, output: Path, *overrides: str) -> Path:
    run(output, *RUN, f"model.init={model}", *overrides)
    return output


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(model, tmp_path_factory.mktemp("experts") / "whole", "parallel.expert=2")


@pytest.fixture(scope="module")
def adapted(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(model, tmp_path_factory.mktemp("experts") / "adapted", "parallel.expert=2", *LORA)


def interrupted(output: Path, again: Path) -> Path:
    """The run after its second step."""
    shutil.copytree(output, again, symlinks=True)
    for part in ("checkpoints/step_000004", "hf", "hf_adapter", "report"):
        shutil.rmtree(again / part, ignore_errors=True)
    return again


def same_files(one: Path, other: Path) -> bool:
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def agree(got: list[dict[str, Any]], want: list[dict[str, Any]]) -> None:
    assert [row["step"] for row in got] == [row["step"] for row in want]
    for mine, theirs in zip(got, want, strict=True):
        for key in ("loss", "rewards/chosen", "grad_norm", "moe/aux_loss", "moe/z_loss", "moe/busiest_expert"):
            assert mine[key] == pytest.approx(theirs[key], rel=2e-3, abs=1e-5), (mine["step"], key)


def test_a_run_shows_its_routers_and_goes_on_to_the_bit(model: Path, whole: Path, tmp_path: Path) -> None:
    assert all(row["moe/busiest_expert"] >= 1 and row["moe/aux_loss"] > 0 for row in rows(whole))
    assert "Load of the experts" in (whole / "report" / "index.html").read_text()
    again = trained(model, interrupted(whole, tmp_path / "again"), "parallel.expert=2")
    assert rows(again) == rows(whole)
    assert same_files(again / "hf" / "model.safetensors", whole / "hf" / "model.safetensors")


def test_a_run_goes_on_at_another_layout(model: Path, whole: Path, tmp_path: Path) -> None:
    agree(rows(trained(model, interrupted(whole, tmp_path / "split"), *SPLIT)), rows(whole))


def test_adapters_of_experts_go_on_to_the_bit_and_peft_loads_them(model: Path, adapted: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    again = trained(model, interrupted(adapted, tmp_path / "again"), "parallel.expert=2", *LORA)
    assert rows(again) == rows(adapted)
    assert same_files(again / "hf_adapter" / WEIGHTS, adapted / "hf_adapter" / WEIGHTS)
    merge_adapter(model, adapted / "hf_adapter", tmp_path / "merged")
    ids = torch.arange(50)[None]
    base: Any = AutoModelForCausalLM.from_pretrained(model)
    before = base(ids).logits
    logits = [
        AutoModelForCausalLM.from_pretrained(folder)(ids).logits for folder in (adapted / "hf", tmp_path / "merged")
    ]
    logits.append(PeftModel.from_pretrained(base, adapted / "hf_adapter")(ids).logits)
    assert (logits[0] - before).abs().max() > 1e-3
    for one in logits[1:]:
        torch.testing.assert_close(one, logits[0], rtol=1e-4, atol=1e-4)


def test_adapters_of_experts_alone_go_on_to_the_bit_and_at_another_layout(tmp_path: Path) -> None:
    """No rank has a parameter for Megatron's optimizer of what are no experts."""
    from transformers import AutoConfig

    model = tmp_path / "model"
    config = AutoConfig.for_model("qwen3_moe", **SIZES | MOE | dict(num_hidden_layers=2, max_position_embeddings=4096))
    make_random(config, model, torch.float32, "5GB")
    alone = [*LORA, "peft.targets=[gate_proj,up_proj,down_proj]"]
    whole = trained(model, tmp_path / "whole", "parallel.expert=2", *alone)
    assert rows(whole)[-1]["rewards/chosen"] != 0
    again = trained(model, interrupted(whole, tmp_path / "again"), "parallel.expert=2", *alone)
    assert rows(again) == rows(whole)
    assert same_files(again / "hf_adapter" / WEIGHTS, whole / "hf_adapter" / WEIGHTS)
    agree(rows(trained(model, interrupted(whole, tmp_path / "split"), *SPLIT, *alone)), rows(whole))
    agree(rows(trained(model, interrupted(whole, tmp_path / "stages"), "parallel.pipeline=2", *alone)), rows(whole))


def test_adapters_of_experts_go_on_at_another_layout(model: Path, adapted: Path, tmp_path: Path) -> None:
    """From a checkpoint with the experts split, and from the folder, with each expert's channels split."""
    agree(rows(trained(model, interrupted(adapted, tmp_path / "split"), *SPLIT, *LORA)), rows(adapted))
    asked = [*LORA, f"model.adapter={adapted / 'hf_adapter'}", "trainer.max_steps=2"]
    one = trained(model, tmp_path / "one", *asked)
    two = trained(model, tmp_path / "two", *asked, "parallel.tensor=2", "parallel.sequence=true")
    agree(rows(two), rows(one))
