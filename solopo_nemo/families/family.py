"""The supported model families, one record for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from solopo_nemo.families.rope import LOCAL
from solopo_nemo.runtime.kernels import lacking

_ATTENTION_NORM, _MLP_NORM = "self_attention.linear_qkv.layer_norm_weight", "mlp.linear_fc1.layer_norm_weight"
POST_NORMS = ("self_attention.post_norm.weight", "mlp.post_norm.weight")
"""Megatron names of the norms behind attention and MLP."""
_PRE_NORMS = {"input_layernorm.weight": _ATTENTION_NORM, "post_attention_layernorm.weight": _MLP_NORM}
_SANDWICH_NORMS = {
    "input_layernorm.weight": _ATTENTION_NORM,
    "post_attention_layernorm.weight": POST_NORMS[0],
    "pre_feedforward_layernorm.weight": _MLP_NORM,
    "post_feedforward_layernorm.weight": POST_NORMS[1],
}


@dataclass(frozen=True)
class ExpertNames:
    """How a family with mixture-of-experts layers names them.

    Attributes:
        module: of a layer, with ``gate`` (the router) and ``experts``.
        projections: linear layers of an expert, in the order of the files.
        count: key of ``config.json`` with the number of experts.
        size: key of ``config.json`` with the width of an expert.
        normalized: the chosen experts' weights always sum to 1; else the key ``norm_topk_prob`` says so.
    """

    module: str
    projections: tuple[str, str, str]
    count: str
    size: str
    normalized: bool = False


@dataclass(frozen=True)
class Family:
    """The properties that differ between families. All have RMSNorm, RoPE, grouped-query attention and a gated MLP.

    Attributes:
        model_type: name in ``config.json``.
        architecture: model class of transformers.
        models: display name for messages.
        defaults: values of keys that ``config.json`` omits. They are the same in transformers 4.40 to 5.24.
        qkv_bias: the query, key and value projections always have biases; no key of ``config.json`` controls them.
        qk_norm: queries and keys are normalized per head.
        sliding: layers with sliding-window attention. ``"layers"``: those that ``use_sliding_window``,
            ``max_window_layers`` and ``layer_types`` select. ``"all"``: every layer. ``"pattern"``: those that
            ``layer_types`` names, or all but each ``sliding_window_pattern``-th; they have the rotary base
            ``rope_local_base_freq``. ``None``: no layer.
        activation: of the MLP's gate, by its name in ``config.json``.
        norms: Hugging Face name of each norm of a layer over the hidden size, and its name in Megatron, in the order of
            transformers.
        zero_centered: a norm multiplies with ``1 + weight``.
        states_window: ``max_position_embeddings`` is the window with linear scaling; else it is that without.
        scaled_embedding: the embedding is multiplied with ``sqrt(hidden_size)``, rounded to its dtype.
        only: keys of this family with a single supported value.
        experts: names of the mixture-of-experts layers; ``None``: every layer has one MLP.
    """

    model_type: str
    architecture: str
    models: str
    defaults: Mapping[str, Any] = field(repr=False)
    qkv_bias: bool = False
    qk_norm: bool = False
    sliding: Literal["layers", "all", "pattern"] | None = None
    activation: str = "silu"
    norms: Mapping[str, str] = field(default_factory=lambda: _PRE_NORMS, repr=False)
    zero_centered: bool = False
    states_window: bool = False
    scaled_embedding: bool = False
    only: Mapping[str, Any] = field(default_factory=dict, repr=False)
    experts: ExpertNames | None = None

    @property
    def post_norms(self) -> bool:
        """True if the outputs of attention and MLP are normalized before they are added to the residual."""
        return POST_NORMS[0] in self.norms.values()

    @property
    def own(self) -> str:
        """What Transformer Engine's layers lack of the family, for messages; empty: nothing."""
        return lacking(self.post_norms, LOCAL in self.defaults)


_SOME_LAYERS = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
_QWEN = {"num_key_value_heads": 32, "max_position_embeddings": 32768, **_SOME_LAYERS}
_LLAMA = {"num_key_value_heads": None, "head_dim": None, "max_position_embeddings": 2048}
_MISTRAL = {"num_key_value_heads": 8, "head_dim": None, "max_position_embeddings": 131072, "sliding_window": 4096}
_SMOLLM3 = {
    "num_key_value_heads": 4,
    "head_dim": None,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
    "no_rope_layers": None,
    "no_rope_layer_interval": 4,
    "rope_theta": 2e6,
    "max_window_layers": 28,
}
_GEMMA3: dict[str, Any] = {
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
    "_sliding_window_pattern": 6,
    "rope_theta": 1e6,
    LOCAL: 10000.0,
    "tie_word_embeddings": True,
    "cache_implementation": None,
}
_GELU = "gelu_pytorch_tanh"
_GEMMA3_ONLY = {
    "hidden_activation": _GELU,
    "hidden_act": _GELU,
    "use_bidirectional_attention": False,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
}
_ROUTER = {"router_aux_loss_coef": 0.001, "output_router_logits": False}
# what the files of Qwen3-Coder say beside the others'
_QWEN_MOE_ONLY = {"qkv_bias": False, "use_qk_norm": True, "shared_expert_intermediate_size": 0}
_QWEN_MOE = {
    "num_key_value_heads": 4,
    "head_dim": None,
    "max_position_embeddings": 32768,
    "max_window_layers": None,  # the files have it, and no window
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "norm_topk_prob": False,
    "decoder_sparse_step": 1,
    "mlp_only_layers": None,
    **_ROUTER,
}
_MIXTRAL = {
    **_MISTRAL,
    "sliding_window": None,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    **_ROUTER,
}
_QWEN_EXPERTS = ExpertNames("mlp", ("gate_proj", "up_proj", "down_proj"), "num_experts", "moe_intermediate_size")
_MIXTRAL_EXPERTS = ExpertNames("block_sparse_moe", ("w1", "w2", "w3"), "num_local_experts", "intermediate_size", True)

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family("qwen2", "Qwen2ForCausalLM", "Qwen2 and Qwen2.5", _QWEN, qkv_bias=True, sliding="layers"),
        Family("qwen3", "Qwen3ForCausalLM", "Qwen3", _QWEN | {"head_dim": 128}, qk_norm=True, sliding="layers"),
        Family("llama", "LlamaForCausalLM", "Llama 2 and 3.x", _LLAMA),
        Family("mistral", "MistralForCausalLM", "Mistral", _MISTRAL, sliding="all"),
        Family("smollm3", "SmolLM3ForCausalLM", "SmolLM3", _SMOLLM3),
        Family(
            "gemma3_text",
            "Gemma3ForCausalLM",
            "Gemma 3 (text)",
            _GEMMA3,
            qk_norm=True,
            sliding="pattern",
            activation=_GELU,
            norms=_SANDWICH_NORMS,
            zero_centered=True,
            states_window=True,
            scaled_embedding=True,
            only=_GEMMA3_ONLY,
        ),
        Family(
            "qwen3_moe",
            "Qwen3MoeForCausalLM",
            "Qwen3-MoE",
            _QWEN_MOE,
            qk_norm=True,
            only=_QWEN_MOE_ONLY,
            experts=_QWEN_EXPERTS,
        ),
        Family("mixtral", "MixtralForCausalLM", "Mixtral", _MIXTRAL, sliding="all", experts=_MIXTRAL_EXPERTS),
    )
}
"""The supported families by ``model_type``."""

UNSUPPORTED = {
    "gemma": "its files are those of the first Gemma, whose layers were not compared",
    "gemma2": "it caps attention scores and logits, which no fused attention kernel of torch does",
    "gemma3": "it reads images too; save its text part, which is supported: "
    "transformers.Gemma3ForCausalLM.from_pretrained(FOLDER).save_pretrained(TEXT_FOLDER), and its tokenizer there",
    "phi3": "its files hold q, k and v, and gate and up, as one tensor each, which peft adapts as one module; "
    "a Phi-4 that was saved as a Llama is supported",
    "qwen2_moe": "every token goes to shared experts too",
    "gpt_oss": "its attention has sinks and biases, and its experts biases and a limited activation",
    "olmo2": "it normalizes queries and keys over all heads at once, and has norms behind attention and MLP alone",
    "olmo3": "it normalizes queries and keys over all heads at once, and has norms behind attention and MLP alone",
    "olmoe": "it normalizes queries and keys over all heads at once",
    "ministral": "it is a Mistral with windows in some layers alone",
    "ministral3": "it scales queries by their position",
}
"""Why a family that a user may bring is not supported."""
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
