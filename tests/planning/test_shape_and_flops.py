"""Parameter counts against transformers' models, operations against torch's counter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from solopo_nemo.config.schema import load_config
from solopo_nemo.objectives import build_objective
from solopo_nemo.planning import (
    CPU,
    GPU,
    Flops,
    Layout,
    Lengths,
    ModelShape,
    Run,
    Workload,
    communication,
    forward_flops,
    hardware_flops,
    load_shape,
    memory,
    model_flops,
)
from solopo_nemo.planning.parameters import StageParameters
from solopo_nemo.planning.shape import named_shapes
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.paths import CONF

FAMILIES = {
    "qwen2": {"tie_word_embeddings": True},
    "llama": {"attention_bias": False, "head_dim": 24},
    "mistral": {"head_dim": 40},
    "qwen3": {"head_dim": 32, "tie_word_embeddings": False},
    "gemma3_text": {"head_dim": 32},
    "smollm3": {"pad_token_id": None},
}


def tiny(family: str, **more: object) -> dict[str, object]:
    return {
        "model_type": family,
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "max_position_embeddings": 4096,
        **FAMILIES[family],
        **more,
    }


def build(config: dict[str, object], device: str = "meta") -> torch.nn.Module:
    with torch.device(device):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_those_of_transformers(family: str, tied: bool) -> None:
    config = tiny(family, tie_word_embeddings=tied)
    shape = ModelShape.from_hf(AutoConfig.for_model(**config).to_dict())
    counted = sum(p.numel() for p in build(config).parameters())
    assert StageParameters.of(shape).total == counted


PUBLISHED = {
    "Qwen/Qwen2.5-0.5B-Instruct": 0.494, "Qwen/Qwen2.5-1.5B-Instruct": 1.544, "Qwen/Qwen2.5-3B-Instruct": 3.086,
    "Qwen/Qwen2.5-7B-Instruct": 7.616, "Qwen/Qwen2.5-14B-Instruct": 14.770, "Qwen/Qwen2.5-32B-Instruct": 32.764,
    "Qwen/Qwen2.5-72B-Instruct": 72.706, "meta-llama/Llama-3.1-8B-Instruct": 8.030,
    "meta-llama/Llama-3.1-70B-Instruct": 70.554, "meta-llama/Llama-3.2-1B-Instruct": 1.236,
    "meta-llama/Llama-3.2-3B-Instruct": 3.213, "Qwen/Qwen3-0.6B": 0.596, "Qwen/Qwen3-4B": 4.022, "Qwen/Qwen3-8B": 8.191,
    "Qwen/Qwen3-14B": 14.768, "Qwen/Qwen3-32B": 32.762, "mistralai/Mistral-7B-Instruct-v0.3": 7.248,
    "Qwen/Qwen3-30B-A3B": 30.532, "Qwen/Qwen3-235B-A22B": 235.094, "mistralai/Mixtral-8x7B-Instruct-v0.1": 46.703,
    "HuggingFaceTB/SmolLM3-3B": 3.075, "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1.711, "google/gemma-3-270m-it": 0.268, "google/gemma-3-1b-it": 1.000,
}  # fmt: skip
"""Billions of parameters that the models' pages state."""


@pytest.mark.parametrize("name", named_shapes())
def test_named_shapes_have_the_published_number_of_parameters(name: str) -> None:
    assert StageParameters.of(load_shape(name)).total / 1e9 == pytest.approx(PUBLISHED[name], abs=0.001)


def test_every_configured_model_can_be_planned_without_its_folder() -> None:
    named = {load_config("solo_dpo", [f"model={path.stem}"]).model.init for path in (CONF / "model").glob("[!c]*.yaml")}
    assert named - {"builtin"} <= named_shapes().keys()


def test_named_shapes_are_nemos_too() -> None:
    from nemo.collections import llm

    for name, config in {
        "Qwen/Qwen2.5-7B-Instruct": llm.Qwen25Config7B,
        "Qwen/Qwen2.5-32B-Instruct": llm.Qwen25Config32B,
        "Qwen/Qwen2.5-72B-Instruct": llm.Qwen25Config72B,
        "meta-llama/Llama-3.1-8B-Instruct": llm.Llama31Config8B,
    }.items():
        shape = load_shape(name)
        ours = (shape.hidden_size, shape.intermediate_size, shape.num_hidden_layers, shape.num_attention_heads)
        theirs = (config.hidden_size, config.ffn_hidden_size, config.num_layers, config.num_attention_heads)
        assert ours == theirs
        assert shape.num_key_value_heads == config.num_query_groups
        assert shape.tie_word_embeddings == config.share_embeddings_and_output_weights


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("tensor", "pipeline"), [(2, 1), (1, 2), (2, 4)])
def test_ranks_together_hold_the_model_and_its_replicated_parts(tied: bool, tensor: int, pipeline: int) -> None:
    shape = ModelShape.from_hf(tiny("qwen3", tie_word_embeddings=tied))
    held = tensor * sum(StageParameters.of(shape, tensor, pipeline, stage).total for stage in range(pipeline))
    norms = (2 * shape.hidden_size + 2 * shape.head_dim) * shape.num_hidden_layers + shape.hidden_size
    tied_copy = shape.vocab_size * shape.hidden_size * (tied and pipeline > 1)
    assert held == StageParameters.of(shape).total + (tensor - 1) * norms + tied_copy


@pytest.mark.parametrize("family", FAMILIES)
def test_flops_are_those_that_torch_counts(family: str) -> None:
    config = tiny(family, attn_implementation="eager")
    shape, model = ModelShape.from_hf(AutoConfig.for_model(**config).to_dict()), build(config, "cpu")
    sequence = Workload.of(build_objective("sft", prompt="long"), Lengths(long=120, short=8, response=9)).policy[0]
    ids = torch.zeros(1, sequence.inputs, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, logits_to_keep=sequence.rows, use_cache=False).logits.sum().backward()
    ours = forward_flops(shape, sequence)
    everything = ours.linear + 2 * ours.attention + ours.head  # torch counts the masked half of attention too
    rotary_angles = sequence.inputs * shape.head_dim * (1 + (shape.rope_local_base_freq is not None))
    assert counter.get_total_flops() == 3 * everything + rotary_angles
    assert model_flops(shape, [sequence]).total == 3 * ours.total


def test_attention_dominated_speed_up_is_the_specifications() -> None:
    """objectives.md section 6: ``2 / (1 + 2 * rho^2)`` in units of the long length squared."""
    shape, lengths = load_shape("Qwen/Qwen2.5-7B-Instruct"), Lengths(long=2**22, short=2**20, response=1)
    attention = {
        name: model_flops(shape, Workload.of(build_objective("dpo", **options), lengths).policy).attention
        for name, options in {
            "solo": {},
            "both": {"align": "both"},
            "vanilla": {"align": "none", "prompt": "long"},
        }.items()
    }
    rho = 1 / 4
    assert attention["vanilla"] / attention["solo"] == pytest.approx(2 / (1 + 2 * rho**2))
    assert attention["both"] / attention["vanilla"] == pytest.approx((2 + 2 * rho**2) / 2)


@given(
    st.integers(1, 10**6), st.integers(1, 10**5), st.integers(1, 1000), st.sampled_from(["none", "selective", "full"])
)
def test_what_hardware_computes_is_never_less_than_the_models_flops(
    long: int, short: int, response: int, recompute: str
) -> None:
    shape, workload = (
        load_shape("meta-llama/Llama-3.1-8B-Instruct"),
        Workload.of(build_objective("dpo"), Lengths(long, short, response)),
    )
    runs = (Run(shape, workload, recompute=recompute, online_reference=on) for on in (False, True))
    counted, online = (hardware_flops(run).total for run in runs)
    assert model_flops(shape, workload.policy).total < counted < online


def test_configurations_that_cannot_be_planned_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny("qwen2") | {"model_type": "gpt2"}))
    with pytest.raises(UserError, match="'gpt2' is not supported"):
        load_shape(str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="no such folder"):
        load_shape("nowhere/at-all")
    with pytest.raises(UserError, match=r"no .*hidden_size"):
        ModelShape.from_hf({"model_type": "qwen2", "num_attention_heads": 4})


def test_the_embedded_model_and_folders_have_shapes(tmp_path: Path) -> None:
    assert load_shape("builtin").vocab_size == 2048
    AutoConfig.for_model(**tiny("llama")).save_pretrained(tmp_path)
    assert load_shape(str(tmp_path)).head_dim == 24


def test_each_rejected_response_is_a_sequence_of_its_own() -> None:
    objective = build_objective("dpo")
    workload = Workload.of(objective, Lengths(8192, 1024, 128, rejected=3))
    names = [sequence.name for sequence in workload.policy]
    assert {name: names.count(name) for name in names} == {"short_chosen": 1, "short_rejected": 3, "long_chosen": 1}
    assert len(workload.reference) == len(Workload.of(objective, Lengths(8192, 1024)).reference) + 2


@pytest.mark.parametrize("field", ["long", "short", "response", "rejected"])
def test_lengths_must_be_positive(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        Lengths(**{"long": 1, "short": 1, "response": 1, "rejected": 1} | {field: 0})


def test_selective_recomputation_is_the_mlp_on_a_gpu_and_attention_on_a_cpu() -> None:
    """Operations, traffic and memory alike: on a GPU nothing of attention is done again."""
    shape = load_shape("Qwen/Qwen2.5-7B-Instruct")
    workload = Workload.of(load_config("solo_dpo", []).build_objective(), Lengths(65536, 1024))
    none, gpu, cpu = (
        hardware_flops(Run(shape, workload, recompute=recompute, device=device))
        for recompute, device in (("none", GPU), ("selective", GPU), ("selective", CPU))
    )
    forward = sum((forward_flops(shape, s) for s in workload.policy), Flops())
    mlp = 3 * shape.intermediate_size * shape.hidden_size * shape.num_hidden_layers
    tokens = sum(sequence.inputs for sequence in workload.policy)
    assert gpu.attention == none.attention
    assert gpu.linear - none.linear == pytest.approx(2 * tokens * mlp)
    assert (cpu.linear, cpu.attention) == (none.linear, none.attention + forward.attention)
    sent = {}
    for device, recompute in ((GPU, "none"), (GPU, "selective"), (CPU, "none"), (CPU, "selective")):
        run = Run(shape, workload, Layout(4, True, 2, "p2p"), device, recompute=recompute)
        sent[device, recompute] = communication(run)
    assert sent[GPU, "selective"].context == sent[GPU, "none"].context
    assert sent[GPU, "selective"].tensor == pytest.approx(sent[GPU, "none"].tensor * 12 / 10, rel=0.002)  # embedding
    assert sent[CPU, "selective"].context > sent[CPU, "none"].context
    assert sent[CPU, "selective"].tensor == sent[CPU, "none"].tensor
    runs = [Run(shape, workload, Layout(4, True, 2, "p2p"), GPU, recompute=r) for r in ("none", "selective", "full")]
    peaks = [memory(run).peak for run in runs]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[1] < 0.75 * peaks[0]
