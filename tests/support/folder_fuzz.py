"""Model folders with one thing changed: the cases of the fuzz, each with what transformers makes of it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hf_models import LLAMA3, SIZES
from true_values import to_version_5

NAN = math.nan
COMMON: dict[str, Any] = SIZES | {
    "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None, "hidden_act": "silu",
    "initializer_range": 0.02, "rms_norm_eps": 1e-5, "rope_theta": 50000.0, "tie_word_embeddings": False,
    "torch_dtype": "float32", "transformers_version": "4.45.0", "use_cache": True,
}  # fmt: skip
LAYERS = {"use_sliding_window": True, "sliding_window": 40, "max_window_layers": 1}
BASES: dict[str, dict[str, Any]] = {
    "qwen2": COMMON | LAYERS | {"architectures": ["Qwen2ForCausalLM"], "num_key_value_heads": 4},
    "qwen3": COMMON | LAYERS | {"architectures": ["Qwen3ForCausalLM"], "head_dim": 16, "attention_bias": False},
    "llama": COMMON
    | {"architectures": ["LlamaForCausalLM"], "head_dim": 16, "attention_bias": False, "mlp_bias": False}
    | {"pretraining_tp": 1, "rope_scaling": LLAMA3},
    "mistral": COMMON | {"architectures": ["MistralForCausalLM"], "head_dim": 16, "sliding_window": 48},
}
"""A whole file of each family, as transformers 4 writes it."""
NUMBERS: dict[str, list[Any]] = {
    "whole": [None, True, "7", -1, 0, 1.5, NAN, [2], {}, 10**12, 10**400],
    "number": [None, True, "1e-5", -1.0, 0, NAN, math.inf, [1.0], {}, 10**400],
    "truth": [None, 1, "true", [], 0.0],
    "ids": [True, "</s>", 1.5, -2, [1, "x"], {}],
}
KINDS = {
    **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"), "whole"),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings"), "whole"),
    **dict.fromkeys(("initializer_range", "rms_norm_eps", "rope_theta"), "number"),
    **dict.fromkeys(("tie_word_embeddings", "use_sliding_window"), "truth"),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), "ids"),
}
NULL_MEANS = {"num_key_value_heads": BASES, "head_dim": ("llama", "mistral")}
"""Keys whose ``null`` transformers reads as a value of its own, and the families that do."""
REQUIRED = ("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
"""Keys without which a file is refused, although transformers would take a 7B model's values."""
OTHER: dict[str, list[Any]] = {
    "rms_norm_eps": [1e-6, 1e-3, 1], "rope_theta": [10000.0, 10000, 1e6], "max_position_embeddings": [256, 4096],
    "initializer_range": [0.1], "vocab_size": [4096], "num_hidden_layers": [1, 3], "eos_token_id": [[2, 3], None, 7],
    "pad_token_id": [0, -1, 2], "tie_word_embeddings": [True], "num_key_value_heads": [1], "head_dim": [32],
}  # fmt: skip
"""Other values that a file may have."""
ONE_VALUE = {
    "hidden_act": ["gelu", None, 3], "attention_bias": [True, None, "no"], "mlp_bias": [True], "use_mrope": [True],
    "attention_dropout": [0.1, None, "0"], "partial_rotary_factor": [0.5, "1"], "rope_interleaved": [True],
    "architectures": ["LlamaForCausalLM", ["LlamaForSequenceClassification"], [1], 7], "model_type": [None, 7, "gpt2"],
    "quantization_config": [{"quant_method": "gptq"}, "fp8"], "is_encoder_decoder": [True],
}  # fmt: skip
"""Values that are refused."""
UNKNOWN = {
    "logit_scale": 0.1, "embedding_multiplier": 12.0, "residual_multiplier": 0.2, "attention_multiplier": 0.01,
    "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0, "no_rope_layers": [1, 0], "use_qk_norm": True,
    "clip_qkv": 8.0, "dual_chunk_attention_config": {"chunk_size": 128}, "num_experts": 8, "layer_norm_eps": 1e-5,
    "original_max_position_embeddings": 128, "is_causal": False, "scale_emb": 12, "attention_sink": True,
    "sliding_window_pattern": 2, "qkv_bias": True, "rotary_pct": 0.25, "per_layer_config": {}, "": 1,
}  # fmt: skip
"""Keys that change what a model of some family computes, or might."""
HARMLESS = {
    "use_cache": "never", "transformers_version": 4, "_name_or_path": None, "pretraining_tp": 2, "temperature": 0.6,
    "id2label": {"0": "A"}, "unsloth_version": "2024.9", "torchscript": True, "auto_map": {}, "return_dict": False,
    "gradient_checkpointing": True, "tokenizer_class": 7, "output_attentions": True, "max_length": -3,
}  # fmt: skip
"""Keys that change nothing, whatever they say."""
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
SCALINGS: list[tuple[Any, bool]] = [
    (None, True), ({"rope_type": "default"}, True), ({"type": "linear", "factor": 2.0}, True), (YARN, True),
    ({"rope_type": "linear", "factor": 8}, True), ({"type": "yarn", "factor": 2.0}, True), (LLAMA3, True),
    (YARN | {"beta_fast": 16.0, "beta_slow": 2.0}, True), (YARN | {"attention_factor": 1.5}, True),
    (YARN | {"mscale": 0.7, "mscale_all_dim": 0.5}, True), (YARN | {"truncate": False}, True),
    (YARN | {"type": "yarn"}, True), (YARN | {"attention_factor": None}, True),
    ({"rope_type": "dynamic", "factor": 2.0}, False), ({"rope_type": "longrope", "factor": 2.0}, False),
    ({"rope_type": "yarn"}, False), (YARN | {"factor": "4"}, False), (YARN | {"factor": None}, False),
    (YARN | {"factor": 0.5}, False), (YARN | {"factor": NAN}, False), (YARN | {"factor": True}, False),
    (YARN | {"factor": 10**400}, False), (YARN | {"original_max_position_embeddings": 10**400}, False),
    (YARN | {"betafast": 1}, False), (YARN | {"truncate": 1}, False), (YARN | {"beta_fast": -1}, False),
    (YARN | {"original_max_position_embeddings": 128.5}, False), (YARN | {"type": "linear"}, False),
    (YARN | {"partial_rotary_factor": 0.5}, False), ({"rope_type": 3, "factor": 2.0}, False),
    ({"rope_type": "linear"}, False), (LLAMA3 | {"high_freq_factor": 1.0}, False), (LLAMA3 | {"factor": -8}, False),
    ({k: v for k, v in LLAMA3.items() if k != "low_freq_factor"}, False), ([1], False), ("yarn", False), (4.0, False),
]  # fmt: skip
"""Rope scalings, and whether they are read."""


@dataclass(frozen=True)
class Case:
    """A ``config.json``; ``read`` says that transformers can run it and this project supports it."""

    name: str
    config: dict[str, Any]
    five: bool
    read: bool


def _changes(family: str, base: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """What happens to a file of transformers 4, all but its rotary embeddings."""
    for key in base:
        rest = {k: v for k, v in base.items() if k != key}
        fits = key != "num_key_value_heads" or family == "llama"  # 32 and 8 of 4 heads
        yield f"without {key}", rest, key not in REQUIRED and fits
    for key, kind in KINDS.items():
        if key in base:
            for value in NUMBERS[kind]:
                means = value is None and family in NULL_MEANS.get(key, ())
                yield f"{key}={value}", base | {key: value}, means
    for key, values in OTHER.items():
        if key in base:
            yield from ((f"{key}={value}", base | {key: value}, True) for value in values)
    for key, values in ONE_VALUE.items():
        yield from ((f"{key}={value}", base | {key: value}, False) for value in values)
    yield from ((f"new {key}", base | {key: value}, False) for key, value in UNKNOWN.items())
    yield from ((f"harmless {key}", base | {key: value}, True) for key, value in HARMLESS.items())
    yield "odd head", base | {"head_dim": 15}, False
    yield "two types of weights", base | {"torch_dtype": "float32", "dtype": "bfloat16"}, False
    yield "a type that is none", base | {"torch_dtype": "float7"}, False
    yield from _sliding(family, base)


def _sliding(family: str, base: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], bool]]:
    full, some = ["full_attention"] * 2, ["sliding_attention", "full_attention"]
    every = ["sliding_attention"] * 2
    layers = family.startswith("qwen")
    for value in NUMBERS["whole"]:
        yield f"sliding_window={value}", base | {"sliding_window": value}, value is None
    yield "sliding_window=8", base | {"sliding_window": 8}, family != "llama"
    yield "layers full", base | {"layer_types": full}, family != "mistral"
    yield "layers some", base | {"layer_types": some}, layers
    yield "layers all", base | {"layer_types": every}, family != "llama"
    yield "layers short", base | {"layer_types": full[:1]}, False
    yield "layers unknown", base | {"layer_types": ["full_attention", "chunked_attention"]}, False
    yield "layers text", base | {"layer_types": "full_attention"}, False
    yield "layers null", base | {"layer_types": None}, True
    for value in (0, 2, 28, None, "1", -1, True):
        read = layers and type(value) is int and value >= 0
        yield f"max_window_layers={value}", base | {"max_window_layers": value}, read
    yield "no sliding", base | {"use_sliding_window": False}, family != "mistral"
    if layers:
        yield "no sliding, but layers", base | {"use_sliding_window": False, "layer_types": some}, False


def _rope(five: bool, base: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], bool]]:
    theta = base["rope_theta"]
    for scaling, read in SCALINGS:
        if not five:
            yield f"rope_scaling={scaling}", base | {"rope_scaling": scaling}, read
        elif isinstance(scaling, dict) or scaling is None:
            bare = {k: v for k, v in base.items() if k not in ("rope_theta", "rope_scaling")}
            parameters = {"rope_theta": theta} | (scaling or {})
            yield f"rope_parameters={scaling}", bare | {"rope_parameters": parameters}, read
    new = to_version_5(base)
    if five:
        for value in NUMBERS["number"]:
            yield f"theta={value}", new | {"rope_parameters": {"rope_type": "default", "rope_theta": value}}, False
        yield "theta outside", new | {"rope_parameters": {"rope_type": "default"}, "rope_theta": 7e4}, True
        yield "no rope", {k: v for k, v in new.items() if k != "rope_parameters"}, True
        yield "rope null", new | {"rope_parameters": None, "rope_theta": 7e4}, True
        yield "nested", new | {"rope_parameters": {"full_attention": new["rope_parameters"]}}, False
        yield "list", new | {"rope_parameters": []}, False
    older = {"rope_theta": theta, "rope_scaling": base.get("rope_scaling")}
    yield "both spellings", new | older, True
    yield "both, another theta", new | older | {"rope_theta": theta + 1}, False
    yield "both, another scaling", new | older | {"rope_scaling": {"type": "linear", "factor": 3.0}}, False


def cases() -> list[Case]:
    """All cases, in a fixed order."""
    found = []
    for family, file in BASES.items():
        base = {"model_type": family} | file
        for five in (False, True):
            whole = [*_changes(family, base)]
            if five:
                own = ("rope_", "two types")  # what a translated file cannot have
                whole = [(n, to_version_5(c), read) for n, c, read in whole if not any(part in n for part in own)]
            for name, config, read in [*whole, *_rope(five, base)]:
                found.append(Case(f"{family}, {4 + five}: {name}", json.loads(json.dumps(config)), five, read))
    return found
