"""What a ``config.json`` says, in the spelling of either transformers, and what is refused by name."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import hf_models
import pytest
import torch
from hf_models import CASES, SIZES, SLIDES
from safetensors.torch import save_file
from true_values import to_version_5, true_values

from solopo_nemo.families import hf
from solopo_nemo.families.description import ModelDescription
from solopo_nemo.families.family import FAMILIES
from solopo_nemo.families.weights import expected_tensors, find_weights
from solopo_nemo.runtime.errors import UserError

SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 1,
    "dtype": "bfloat16", "eos_token_id": 2, "head_dim": 64, "hidden_act": "silu", "hidden_size": 576,
    "initializer_range": 0.02, "intermediate_size": 1536, "max_position_embeddings": 8192, "mlp_bias": False,
    "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
    "pad_token_id": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "tie_word_embeddings": True,
    "transformers_version": "5.0.0", "unk_token_id": 0, "use_cache": True, "vocab_size": 49152,
    "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"},
}  # fmt: skip
"""A file that transformers 5 wrote."""
YARN = {"rope_theta": 100000.0, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}
QWEN2 = {"model_type": "qwen2"} | SIZES
ROPES = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
GEMMA3 = SIZES | {
    "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "attn_logit_softcapping": None, "bos_token_id": 2, "eos_token_id": [1, 106], "final_logit_softcapping": None,
    "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "initializer_range": 0.02, "pad_token_id": 0,
    "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000, "rope_scaling": None,
    "rope_theta": 1000000, "sliding_window": 512, "use_cache": True,
}  # fmt: skip
REAL: dict[str, dict[str, Any]] = {
    "Qwen2.5 base": QWEN2 | {
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643,
        "hidden_act": "silu", "initializer_range": 0.02, "max_window_layers": 24, "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1", "use_cache": True, "use_mrope": False, "use_sliding_window": False,
    },
    "Qwen2.5, saved by transformers 5": QWEN2 | {
        "layer_types": ["full_attention"] * 2, "max_window_layers": 28, "pad_token_id": None, "dtype": "bfloat16",
        "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}, "sliding_window": None,
        "use_sliding_window": False, "transformers_version": "5.17.0",
    },
    "Qwen3": SIZES | {
        "model_type": "qwen3", "head_dim": 128, "attention_bias": False, "rope_scaling": None, "rope_theta": 1000000,
        "sliding_window": None, "use_sliding_window": False, "max_window_layers": 36, "eos_token_id": [151645, 151643],
    },
    "Llama 2": SIZES | {
        "model_type": "llama", "_name_or_path": "meta-llama/Llama-2-7b-hf", "pretraining_tp": 1, "rope_scaling": None,
        "rms_norm_eps": 1e-05, "pad_token_id": 0, "max_length": 4096, "torch_dtype": "float16",
    },
    "Llama 3.2": SIZES | {
        "model_type": "llama", "head_dim": 16, "mlp_bias": False, "eos_token_id": [128001, 128008, 128009],
        "rope_scaling": hf_models.LLAMA3, "rope_theta": 500000.0,
    },
    "Mistral v0.3": SIZES | {"model_type": "mistral", "sliding_window": None, "rope_theta": 1000000.0},
    "Mistral Nemo": SIZES | {"model_type": "mistral", "head_dim": 128, "sliding_window": None},
    "SmolLM3": SIZES | {
        "model_type": "smollm3", "no_rope_layer_interval": 4, "no_rope_layers": [1, 1], "use_sliding_window": False,
        "sliding_window": None, "rope_theta": 5000000.0, "max_window_layers": 28, "mlp_bias": False,
        "layer_types": ["full_attention"] * 2, "attention_bias": False, "pretraining_tp": 2, "rope_scaling": None,
    },
    "Gemma 3 1B": GEMMA3 | {"sliding_window_pattern": 6, "cache_implementation": "hybrid", "torch_dtype": "bfloat16"},
    "Gemma 3 270M, saved by transformers 4.57": GEMMA3 | {
        "_sliding_window_pattern": 6, "layer_types": SLIDES, "use_bidirectional_attention": False, "dtype": "bfloat16",
    },
    "Gemma 3, saved by transformers 5": {k: v for k, v in GEMMA3.items() if not k.startswith("rope")} | {
        "layer_types": SLIDES, "dtype": "bfloat16", "rope_parameters": ROPES,
    },
    "Qwen3-Coder": SIZES | {
        "model_type": "qwen3_moe", "mlp_only_layers": [], "num_experts": 128, "output_router_logits": False, "qkv_bias": False,
        "router_aux_loss_coef": 0.0, "rope_theta": 10000000, "shared_expert_intermediate_size": 0, "sliding_window": None,
        "use_qk_norm": True, "use_sliding_window": False,
    },
    "Qwen3-MoE, a window that is off": SIZES | {"model_type": "qwen3_moe", "sliding_window": 4096, "use_sliding_window": False},
    "Phi-4 as a Llama": SIZES | {"model_type": "llama", "head_dim": 128, "original_max_position_embeddings": 512},
    "SmolLM2": SIZES | {
        "model_type": "llama", "is_llama_config": True, "rope_interleaved": False, "rope_scaling": None,
        "rope_theta": 100000, "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    },
}  # fmt: skip
"""Keys of public files, at small sizes."""


def read(config: dict[str, Any]) -> ModelDescription:
    return ModelDescription.from_hf(json.loads(json.dumps(config)), "m/config.json")


def test_files_of_transformers_5_are_read_with_their_values() -> None:
    plain, yarn = read(SMOLLM2), read(SMOLLM2 | {"rope_parameters": YARN, "max_position_embeddings": 32768})
    assert (plain.rope_theta, plain.rope_scaling, plain.window) == (1e5, None, 8192)
    assert (yarn.rope_theta, yarn.window) == (1e5, 32768)
    assert yarn.rope_scaling == {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}
    config = yarn.transformers_config()
    assert (config.rope_theta, config.rope_scaling["factor"]) == (1e5, 4.0)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("five", [False, True])
def test_both_spellings_have_the_true_values(name: str, five: bool) -> None:
    config = SIZES | {"model_type": CASES[name].family} | CASES[name].settings
    values, kv_heads = true_values(config, False)
    model = read(to_version_5(config) if five else config)
    assert (model.num_attention_heads, model.head_dim, model.rope_theta) == (
        values.heads,
        values.head_dim,
        values.theta,
    )
    assert (model.num_key_value_heads, model.rms_norm_eps) == (kv_heads, values.epsilon)
    assert model.rope_scaling == values.scaling
    size, layers = model.attention_window or (None, [False] * len(values.sliding))
    assert tuple(size if on else None for on in layers) == values.sliding


@pytest.mark.parametrize("name", REAL)
def test_public_files_are_read(name: str) -> None:
    model = read(REAL[name])
    values, kv_heads = true_values(REAL[name], "rope_parameters" in REAL[name])
    assert (model.rope_theta, model.num_key_value_heads) == (values.theta, kv_heads)
    assert model.head_dim == values.head_dim


@pytest.mark.parametrize("name", [n for n in REAL if "5" not in n.split("transformers")[-1][-2:]])
def test_a_file_of_transformers_4_needs_no_change(name: str) -> None:
    assert read(REAL[name]).changes() == {}


def test_an_export_says_the_same_in_both_spellings() -> None:
    """transformers 4 gets its keys beside those of transformers 5, and the copy needs no further change."""
    source = SMOLLM2 | {"rope_parameters": YARN, "max_position_embeddings": 32768}
    changes = read(source).changes()
    scaling = {k: v for k, v in YARN.items() if k != "rope_theta"}
    assert changes == {"rope_theta": 1e5, "rope_scaling": scaling, "torch_dtype": "bfloat16"}
    both = source | changes
    assert read(both) == read(source)
    assert read(both).changes() == {}
    assert true_values(both, True) == true_values(both, False)
    other = ModelDescription.from_hf(both, rope_scaling={"type": "linear", "factor": 2.0})
    again = both | other.changes()
    assert read(again).rope_scaling == other.rope_scaling == {"rope_type": "linear", "factor": 2.0}
    assert again["rope_parameters"] == {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e5}


NESTED = {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}
REFUSED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "unknown key": ({"logit_scale": 2.0}, ("logit_scale", "unknown", "m/config.json")),
    "a key of another family": ({"sliding_window": 64}, ("sliding_window", "Llama")),
    "theta twice": ({"rope_theta": 1e4}, ("rope_theta=100000.0", "contradicts", "10000.0")),
    "scaling twice": (
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        ("rope_parameters", "contradicts", "linear"),
    ),
    "scaling switched off beside YaRN": ({"rope_parameters": YARN, "rope_scaling": None}, ("contradicts", "None")),
    "dtype twice": ({"torch_dtype": "float16"}, ("dtype=bfloat16", "torch_dtype=float16")),
    "two types": ({"rope_parameters": YARN | {"type": "linear"}}, ("'linear'", "'yarn'")),
    "one mapping a layer type": ({"rope_parameters": NESTED}, ("full_attention", "layer type")),
    "partial rotation": ({"rope_parameters": YARN | {"partial_rotary_factor": 0.5}}, ("partial_rotary_factor=0.5",)),
    "a factor without a type": ({"rope_parameters": {"rope_theta": 1e5, "factor": 4.0}}, ("'default'", "factor")),
    "unknown rope key": ({"rope_parameters": YARN | {"short_factor": [1.0]}}, ("short_factor",)),
    "theta in the old mapping": (
        {"rope_parameters": None, "rope_scaling": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5.0}},
        ("rope_theta", "linear"),
    ),
    "theta as text": ({"rope_parameters": {"rope_theta": "1e5", "rope_type": "default"}}, ("rope_theta='1e5'",)),
    "theta null": ({"rope_parameters": {"rope_theta": None}}, ("rope_theta=None",)),
    "theta not a number": ({"rope_parameters": {"rope_theta": float("nan")}}, ("rope_theta=nan",)),
    "rope as a list": ({"rope_parameters": [1]}, ("rope_parameters", "mapping")),
    "size as text": ({"hidden_size": "576"}, ("hidden_size='576'", "whole number")),
    "size as a fraction": ({"vocab_size": 49152.5}, ("vocab_size=49152.5",)),
    "size true": ({"num_hidden_layers": True}, ("num_hidden_layers=True",)),
    "no layers": ({"num_hidden_layers": 0}, ("num_hidden_layers=0",)),
    "negative heads": ({"num_attention_heads": -9}, ("num_attention_heads=-9",)),
    "odd heads": ({"head_dim": 63}, ("head_dim=63", "odd")),
    "epsilon zero": ({"rms_norm_eps": 0}, ("rms_norm_eps=0",)),
    "tied as a number": ({"tie_word_embeddings": 1}, ("tie_word_embeddings=1", "true or false")),
    "dropout": ({"attention_dropout": 0.1}, ("attention_dropout=0.1",)),
    "another type": ({"dtype": "float8_e4m3fn"}, ("float8_e4m3fn",)),
    "layer types of another model": ({"layer_types": ["sliding_attention"] * 30}, ("layer_types", "contradicts")),
    "too few layer types": ({"layer_types": ["full_attention"]}, ("layer_types", "30")),
    "end token as text": ({"eos_token_id": "</s>"}, ("eos_token_id='</s>'",)),
    "architectures as text": ({"architectures": "LlamaForCausalLM"}, ("architectures", "list")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    changes, culprits = REFUSED[name]
    with pytest.raises(UserError) as error:
        read(SMOLLM2 | changes)
    assert all(culprit in str(error.value) for culprit in culprits), error.value


GEMMA3_REFUSED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "capped scores": ({"attn_logit_softcapping": 50.0}, ("attn_logit_softcapping=50.0", "only None")),
    "capped logits": ({"final_logit_softcapping": 30.0}, ("final_logit_softcapping=30.0",)),
    "another activation": ({"hidden_activation": "gelu"}, ("hidden_activation=gelu", "gelu_pytorch_tanh")),
    "attention to both sides": ({"use_bidirectional_attention": True}, ("use_bidirectional_attention=True",)),
    "no window": ({"sliding_window": None}, ("sliding_window=None", "whole number")),
    "no pattern": ({"sliding_window_pattern": 0}, ("sliding_window_pattern=0",)),
    "too few layer types": ({"layer_types": SLIDES[:1]}, ("layer_types", "2 layers")),
    "an unknown layer type": ({"layer_types": ["full_attention", "chunked_attention"]}, ("layer_types", "sliding")),
    "local base": ({"rope_local_base_freq": 0}, ("sliding_attention: rope_theta=0",)),
    "score scale": ({"query_pre_attn_scalar": "256"}, ("query_pre_attn_scalar='256'", "positive number")),
    "one mapping for both": ({"rope_parameters": ROPES["full_attention"]}, ("rope_parameters", "full_attention")),
    "scaled local layers": (
        {"rope_parameters": ROPES | {"sliding_attention": ROPES["full_attention"]}, "rope_local_base_freq": 1e6},
        ("sliding_attention has", "linear"),
    ),
    "local base twice": ({"rope_parameters": ROPES, "rope_local_base_freq": 5e3}, ("contradicts", "10000.0", "5000.0")),
    "global base twice": ({"rope_parameters": ROPES, "rope_theta": 5e5}, ("contradicts", "500000.0")),
    "images": ({"model_type": "gemma3", "text_config": {}}, ("reads images", "Gemma3ForCausalLM.from_pretrained")),
    "Gemma 2": ({"model_type": "gemma2"}, ("caps attention scores",)),
    "Phi-4": ({"model_type": "phi3"}, ("one tensor each", "saved as a Llama")),
    "no setting of its own": ({"model_type": "helium"}, ("what its layers compute was not compared",)),
    "settings that are off": ({"model_type": "olmo", "clip_qkv": None, "pool": 0}, ("was not compared",)),
    "images beside a Mistral": (
        {"model_type": "mistral3", "vision_config": {}, "text_config": {"model_type": "mistral"}},
        ("reads images", "'mistral', supported if they are saved alone as a MistralForCausalLM"),
    ),
    "images beside an unknown model": (
        {"model_type": "qwen3_5", "vision_config": {}, "text_config": {"model_type": ["qwen3_5_text"]}},
        ("reads images", "its text layers are", "qwen3_5_text"),
    ),
    "an unknown family": (
        {"model_type": "deepseek_v3", "q_lora_rank": 1536, "n_group": 8, "attention_bias": True},
        ("'deepseek_v3'", "unknown here: q_lora_rank, n_group, attention_bias=True)", "Gemma 3"),
    ),
}


@pytest.mark.parametrize("name", GEMMA3_REFUSED)
def test_what_is_refused_of_gemma_3_and_of_other_families(name: str) -> None:
    changes, culprits = GEMMA3_REFUSED[name]
    with pytest.raises(UserError) as error:
        read(GEMMA3 | changes)
    assert all(culprit in str(error.value) for culprit in culprits), error.value
    assert "\n" not in str(error.value)


QWEN3_MOE, MIXTRAL = (SIZES | {"model_type": name} for name in ("qwen3_moe", "mixtral"))
EXPERTS_REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a number as text": (QWEN3_MOE | {"num_experts": "8"}, "num_experts='8'"),
    "no experts": (QWEN3_MOE | {"num_experts": 0}, "num_experts=0"),
    "experts without channels": (QWEN3_MOE | {"moe_intermediate_size": 0}, "moe_intermediate_size=0"),
    "none chosen": (QWEN3_MOE | {"num_experts_per_tok": 0}, "num_experts_per_tok=0"),
    "a text for yes": (QWEN3_MOE | {"norm_topk_prob": "yes"}, "true or false"),
    "a loss below zero": (QWEN3_MOE | {"router_aux_loss_coef": -1}, "router_aux_loss_coef=-1"),
    "a loss that is no number": (MIXTRAL | {"router_aux_loss_coef": "high"}, "router_aux_loss_coef='high'"),
    "a loss of NaN": (MIXTRAL | {"router_aux_loss_coef": float("nan")}, "router_aux_loss_coef=nan"),
    "no step of layers": (QWEN3_MOE | {"decoder_sparse_step": 0}, "decoder_sparse_step=0"),
    "one layer, no list": (QWEN3_MOE | {"mlp_only_layers": 0}, "mlp_only_layers=0"),
    "layers as text": (QWEN3_MOE | {"mlp_only_layers": ["0"]}, "a list of layers"),
    "more chosen than there are": (MIXTRAL | {"num_local_experts": 1}, "is more than num_local_experts=1"),
    "another family's key": (MIXTRAL | {"num_experts": 8}, "'num_experts' is unknown for Mixtral"),
    "shared experts": (QWEN3_MOE | {"n_shared_experts": 1}, "'n_shared_experts' is unknown"),
    "an expert that all share": (
        QWEN3_MOE | {"shared_expert_intermediate_size": 64},
        "shared_expert_intermediate_size=64 is not supported, only 0",
    ),
    "no norm of queries": (QWEN3_MOE | {"use_qk_norm": False}, "use_qk_norm=False is not supported"),
    "shared experts of Qwen2": ({"model_type": "qwen2_moe"}, "every token goes to shared experts"),
    "norms over all heads": ({"model_type": "olmoe", "clip_qkv": None}, "over all heads at once"),
    "another router": (QWEN3_MOE | {"scoring_func": "sigmoid"}, "'scoring_func' is unknown"),
    "groups of experts": (QWEN3_MOE | {"topk_group": 4}, "'topk_group' is unknown"),
    "quantized experts": (MIXTRAL | {"quantization_config": {"quant_method": "mxfp4"}}, "quantization_config"),
}


@pytest.mark.parametrize("name", EXPERTS_REFUSED)
def test_what_is_refused_of_models_with_experts(name: str) -> None:
    config, culprit = EXPERTS_REFUSED[name]
    with pytest.raises(UserError) as error:
        read(config)
    assert culprit in str(error.value)
    assert "\n" not in str(error.value)


def test_the_tensor_of_an_expert_that_is_not_there_is_named(tmp_path: Path) -> None:
    model = read(
        QWEN3_MOE
        | {"vocab_size": 8, "hidden_size": 32, "intermediate_size": 8, "num_experts": 2, "num_experts_per_tok": 1}
    )
    tensors = {name: torch.zeros(tensor.shape) for name, tensor in expected_tensors(model, torch.float32).items()}
    name = "model.layers.1.mlp.experts.1.up_proj.weight"
    tensors[name.replace("experts.1", "experts.2")] = tensors.pop(name)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=f"hold no {re.escape(name)}"):
        find_weights(tmp_path, model)


def test_layers_without_rotary_embeddings() -> None:
    smollm3 = SIZES | {"model_type": "smollm3", "num_hidden_layers": 5}
    assert read(smollm3).no_rope_layers == (1, 1, 1, 0, 1)
    assert read(smollm3 | {"no_rope_layers": [0, 1, 1, 1, 1]}).no_rope_layers == (0, 1, 1, 1, 1)
    for wrong in ([1, 2, 1, 1, 1], [1], "all", [True] * 5):
        with pytest.raises(UserError, match=r"no_rope_layers=.* a list of 0 and 1, one for each of 5 layers"):
            read(smollm3 | {"no_rope_layers": wrong})


def test_the_window_of_gemma_3_is_the_stated_one() -> None:
    """Also with its linear scaling, which published files state beside the window that it makes."""
    own = read(GEMMA3 | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}})
    assert (own.window, read(GEMMA3).window) == (512, 512)
    longer = ModelDescription.from_hf(own.source, rope_scaling={"rope_type": "linear", "factor": 32.0})
    assert longer.window == 2048
    assert longer.changes() == {"rope_scaling": longer.rope_scaling, "max_position_embeddings": 2048}
    assert read(own.source | longer.changes()).window == 2048
    yarn = ModelDescription.from_hf(GEMMA3, rope_scaling={"rope_type": "yarn", "factor": 4.0})
    assert yarn.window == 2048


HARMLESS = [
    ({"type": "linear", "factor": 2.0}, {"rope_type": "linear", "factor": 2.0, "attention_factor": None}),
    (YARN, YARN | {"finetuned": True, "extrapolation_factor": 1, "attn_factor": 1.0}),
    (None, {}),
]


@pytest.mark.parametrize(("plain", "spelled"), HARMLESS)
def test_spellings_that_change_nothing(plain: Any, spelled: Any) -> None:
    one, other = ({k: v for k, v in s.items() if k != "rope_theta"} if s else s for s in (plain, spelled))
    source = {key: value for key, value in SMOLLM2.items() if key != "rope_parameters"} | {"rope_theta": 100000}
    left, right = read(source | {"rope_scaling": one}), read(source | {"rope_scaling": other, "rope_theta": 1e5})
    assert left.computation() == right.computation()
    assert right.rope_scaling == left.rope_scaling
    assert left.computation() != read(source | {"rope_scaling": one, "rope_theta": 99999}).computation()
    assert right.changes() == ({"rope_scaling": None} if other == {} else {})


def test_yarn_that_was_not_trained_is_refused_with_the_remedy() -> None:
    with pytest.raises(UserError, match="type 'yarn' has no finetuned: remove it if the model was trained without it"):
        read(SMOLLM2 | {"rope_parameters": YARN | {"finetuned": False}})


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_an_end_token_beyond_the_vocabulary_is_warned_of(
    file: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("solopo_nemo").propagate = True
    (tmp_path / "config.json").write_text(json.dumps(QWEN2))
    stated = json.loads((tmp_path / file).read_text()) if file == "config.json" else {}
    (tmp_path / file).write_text(json.dumps(stated | {"eos_token_id": [1, QWEN2["vocab_size"]]}))
    hf.read_config(tmp_path)
    assert f"{tmp_path / file}: eos_token_id={QWEN2['vocab_size']} is beyond the model's vocab_size" in caplog.text
    assert "eos_token_id=1 " not in caplog.text


def test_code_in_a_model_folder_is_said_not_to_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("solopo_nemo").propagate = True
    (tmp_path / "config.json").write_text(json.dumps(QWEN2 | {"auto_map": {"AutoModelForCausalLM": "own.Model"}}))
    hf.read_config(tmp_path)
    assert "auto_map names Python code, which is not run: the model is Qwen2 and Qwen2.5" in caplog.text


def test_sliding_layers_without_a_window_are_refused() -> None:
    types = ["full_attention", "sliding_attention"]
    with pytest.raises(UserError, match="layer_types has sliding_attention"):
        read(QWEN2 | {"layer_types": types})
    model = read(QWEN2 | {"layer_types": types, "use_sliding_window": True, "sliding_window": 8})
    assert model.attention_window == (8, [False, True])


@pytest.mark.parametrize(
    ("file", "content", "culprit"),
    [
        ("generation_config.json", '{"eos_token_id": "</s>"}', "eos_token_id='</s>'"),
        ("generation_config.json", "{", "not JSON"),
        ("config.json", "[" * 100_000, "not JSON"),
        ("config.json", '{"model_type": ["qwen2"]}', "model_type"),
        ("config.json", "\xff", "config.json"),
        ("config.json", "\xef\xbb\xbf{}", "save it as UTF-8 without a byte order mark"),
    ],
)
def test_damaged_files_are_one_line(file: str, content: str, culprit: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN2))
    (tmp_path / file).write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=culprit):
        hf.read_config(tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_the_tensors_are_those_of_transformers(family: str, tied: bool) -> None:
    from transformers import AutoModelForCausalLM

    model = read(SIZES | {"model_type": family, "head_dim": 24, "tie_word_embeddings": tied})
    with torch.device("meta"):
        want = AutoModelForCausalLM.from_config(model.transformers_config()).state_dict()
    if tied:
        want.pop("lm_head.weight")
    got = expected_tensors(model, torch.float32)
    assert [(name, x.shape) for name, x in got.items()] == [(name, x.shape) for name, x in want.items()]


def test_sampling_reads_the_rotary_embeddings_too(tmp_path: Path) -> None:
    """Also of models that this project does not train, as far as the installed transformers can read them."""
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2 | {"rope_parameters": YARN}))
    config = hf.transformers_config(tmp_path)
    assert (config.rope_theta, config.rope_scaling["rope_type"]) == (1e5, "yarn")
    gemma = {"model_type": "gemma", "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    (tmp_path / "config.json").write_text(json.dumps(gemma))
    with pytest.raises(UserError, match="rope_parameters"):
        hf.transformers_config(tmp_path)
