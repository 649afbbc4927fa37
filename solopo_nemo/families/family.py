"""The supported model families, one record for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Family:
    """The properties that differ between families. All have RMSNorm, RoPE, grouped-query attention and SwiGLU.

    Attributes:
        model_type: name in ``config.json``.
        architecture: model class of transformers.
        models: display name for messages.
        defaults: values of keys that ``config.json`` omits. They are the same in transformers 4.40 to 5.24.
        qkv_bias: the query, key and value projections always have biases; no key of ``config.json`` controls them.
        qk_norm: queries and keys are normalized per head.
        sliding: layers with sliding-window attention. ``"layers"``: those that ``use_sliding_window``,
            ``max_window_layers`` and ``layer_types`` select. ``"all"``: every layer. ``None``: no layer.
    """

    model_type: str
    architecture: str
    models: str
    defaults: Mapping[str, Any] = field(repr=False)
    qkv_bias: bool = False
    qk_norm: bool = False
    sliding: Literal["layers", "all"] | None = None


_SOME_LAYERS = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
_QWEN = {"num_key_value_heads": 32, "max_position_embeddings": 32768, **_SOME_LAYERS}
_LLAMA = {"num_key_value_heads": None, "head_dim": None, "max_position_embeddings": 2048}
_MISTRAL = {"num_key_value_heads": 8, "head_dim": None, "max_position_embeddings": 131072, "sliding_window": 4096}

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family("qwen2", "Qwen2ForCausalLM", "Qwen2 and Qwen2.5", _QWEN, qkv_bias=True, sliding="layers"),
        Family("qwen3", "Qwen3ForCausalLM", "Qwen3", _QWEN | {"head_dim": 128}, qk_norm=True, sliding="layers"),
        Family("llama", "LlamaForCausalLM", "Llama 2 and 3.x", _LLAMA),
        Family("mistral", "MistralForCausalLM", "Mistral", _MISTRAL, sliding="all"),
    )
}
"""The supported families by ``model_type``."""

SUPPORTED = "supported are " + ", ".join(f"{family.models} ({name})" for name, family in FAMILIES.items())

LINEARS = {
    "self_attention.linear_qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention.linear_proj": ("self_attn.o_proj",),
    "mlp.linear_fc1": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.linear_fc2": ("mlp.down_proj",),
}
"""The Hugging Face modules that each linear layer of Megatron fuses, in the order of its output rows."""
MODULES = {path.split(".")[1]: path for paths in LINEARS.values() for path in paths}
"""Path in a layer of each module that may have an adapter, by its own name."""
TARGETS = tuple(MODULES)
"""Names of the modules that may have an adapter."""
