"""What transformers computes with for a ``config.json``: a table of its own, which knows nothing of the package."""

from __future__ import annotations

from typing import Any

from plain_decoder import Values

DEFAULTS: dict[str, dict[str, Any]] = {
    "qwen2": {"num_key_value_heads": 32, "max_position_embeddings": 32768, "sliding_window": 4096},
    "qwen3": {"num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 32768, "sliding_window": 4096},
    "llama": {"max_position_embeddings": 2048},
    "gemma3_text": {
        "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131072, "sliding_window": 4096,
        "rope_theta": 1e6, "rope_local_base_freq": 1e4, "query_pre_attn_scalar": 256,
    },
    "qwen3_moe": {
        "num_key_value_heads": 4, "max_position_embeddings": 32768, "num_experts_per_tok": 8, "norm_topk_prob": False,
    },
    "mixtral": {
        "num_key_value_heads": 8, "max_position_embeddings": 131072, "num_experts_per_tok": 2, "norm_topk_prob": True,
        "rms_norm_eps": 1e-5, "rope_theta": 1e6,
    },
    "smollm3": {"num_key_value_heads": 4, "max_position_embeddings": 32768, "rope_theta": 2e6},
    "mistral": {"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096},
}  # fmt: skip
"""From the configuration classes of transformers 4.57.6, 5.0.0 and 5.24.0, which agree."""


def to_version_5(config: dict[str, Any]) -> dict[str, Any]:
    """A ``config.json`` of transformers 4 as transformers 5 writes it."""
    config, of_family = dict(config), DEFAULTS.get(str(config.get("model_type")), {})
    theta = of_family.get("rope_theta", 10000.0)
    scaling = dict(config.pop("rope_scaling", None) or {})
    kind = scaling.pop("type", None)
    parameters = {"rope_type": kind or "default"} | scaling | {"rope_theta": config.pop("rope_theta", theta)}
    if parameters["rope_type"] in ("yarn", "llama3"):
        parameters.setdefault("original_max_position_embeddings", config.get("max_position_embeddings"))
    if "torch_dtype" in config:
        config["dtype"] = config.pop("torch_dtype")
    if "rope_local_base_freq" in of_family:
        local = {"rope_type": "default", "rope_theta": config.pop("rope_local_base_freq", 1e4)}
        parameters = {"full_attention": parameters, "sliding_attention": local}
    return config | {"rope_parameters": parameters, "transformers_version": "5.0.0"}


def true_values(config: dict[str, Any], five: bool) -> tuple[Values, int]:
    """The values of a file that the given version wrote, and the number of key and value heads.

    A file in both spellings has to say the same in both.
    """
    family = config["model_type"]
    full = DEFAULTS[family] | config
    heads, window = full["num_attention_heads"], full["max_position_embeddings"]
    local = full.get("rope_local_base_freq")
    if five and local:
        nested = full["rope_parameters"]
        rope, local = dict(nested["full_attention"]), nested["sliding_attention"]["rope_theta"]
        theta = rope.pop("rope_theta")
    elif five:
        rope = dict(full.get("rope_scaling") or full.get("rope_parameters") or {})
        theta = rope.pop("rope_theta", full.get("rope_theta", 10000.0))
    else:
        rope, theta = dict(full.get("rope_scaling") or {}), full.get("rope_theta", 10000.0)
    kind = rope.get("rope_type", rope.get("type", "default"))
    scaling = None if kind == "default" else {k: v for k, v in rope.items() if k != "type"} | {"rope_type": kind}
    layers = range(full["num_hidden_layers"])
    sliding: list[int | None] = [None for _ in layers]
    if local:
        types = full.get("layer_types") or [*["sliding_attention"] * 5, "full_attention"] * len(layers)
        sliding = [full["sliding_window"] if types[i] == "sliding_attention" else None for i in layers]
    if family in ("mistral", "mixtral"):
        sliding = [full.get("sliding_window") for _ in layers]
    elif family.startswith("qwen") and full.get("use_sliding_window", False):
        first = full.get("max_window_layers", 28)
        types = full.get("layer_types") or ["sliding_attention" if i >= first else "full_attention" for i in layers]
        sliding = [full["sliding_window"] if kind == "sliding_attention" else None for kind in types]
    turned = None
    if family == "smollm3":
        stated, every = full.get("no_rope_layers"), full.get("no_rope_layer_interval", 4)
        turned = tuple(map(bool, stated or [(i + 1) % every for i in layers]))
    values = Values(
        heads=heads,
        head_dim=full.get("head_dim") or full["hidden_size"] // heads,
        theta=theta,
        scaling=scaling,
        window=window,
        epsilon=full.get("rms_norm_eps", 1e-6),
        sliding=tuple(sliding),
        turned=turned,
        local_theta=local,
        scalar=full.get("query_pre_attn_scalar"),
        gemma=bool(local),
        experts=full.get("num_experts_per_tok", 0),
        normalized=full.get("norm_topk_prob", False),
    )
    return values, full.get("num_key_value_heads") or heads
