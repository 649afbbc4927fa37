"""What a Hugging Face folder says about its model: read, checked, and extended past its window. No Megatron here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from solopo_nemo.runtime.errors import UserError

ARCHITECTURES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
}
"""Supported families: ``model_type`` and the class that holds its weights."""

SUPPORTED = "supported are Qwen2 and Qwen2.5 (qwen2), Qwen3 (qwen3), Llama 2 and 3.x (llama), Mistral (mistral)"

RECORD = "conversion.json"
"""What a finished conversion leaves in its destination."""
TEMPLATE_PATTERNS = (
    *("*.json", "*.jinja", "*.model", "*.model.v*", "*.txt", "merges*", "vocab*", "LICENSE*"),
    "additional_chat_templates/*.jinja",
)
NOT_TEMPLATE = ("model.safetensors.index.json", "pytorch_model.bin.index.json", RECORD)

ROPE_KEYS: dict[str, tuple[set[str], set[str]]] = {
    "linear": ({"factor"}, set()),
    "llama3": ({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}, set()),
    "yarn": (
        {"factor"},
        {"original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale"}
        | {"mscale_all_dim", "truncate"},
    ),
}
"""Keys of ``rope_scaling`` by type, as transformers has them: needed, optional."""


def is_checkpoint(path: Path) -> bool:
    """Whether a folder is a NeMo checkpoint."""
    return (path / "weights" / "metadata.json").is_file() and (path / "context").is_dir()


def rope_scaling_of(config: Any) -> dict[str, Any] | None:
    """The model's ``rope_scaling`` with its type under ``rope_type`` and nothing left to defaults of other fields.

    Args:
        config: a transformers configuration.
    """
    return _normal(getattr(config, "rope_scaling", None), int(config.max_position_embeddings), "rope_scaling")


def _normal(value: Any, window: int, where: str) -> dict[str, Any] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: must be a mapping such as {{rope_type: yarn, factor: 4.0}}, not {value!r}")
    scaling = {k: v for k, v in value.items() if v is not None and k != "type"}
    kind = scaling.setdefault("rope_type", value.get("type", "default"))
    if kind == "default":
        return None
    if kind not in ROPE_KEYS:
        raise UserError(f"{where}: type {kind!r} is not supported; supported are {', '.join(ROPE_KEYS)}")
    needed, optional = ROPE_KEYS[kind]
    missing, unknown = needed - scaling.keys(), scaling.keys() - needed - optional - {"rope_type"}
    if missing:
        raise UserError(f"{where}: type {kind!r} needs {', '.join(sorted(missing))}")
    if unknown:
        raise UserError(f"{where}: type {kind!r} has no {', '.join(sorted(unknown))}")
    for key, number in scaling.items():
        if key == "truncate":
            bad = not isinstance(number, bool)
        else:
            bad = key != "rope_type" and (isinstance(number, bool) or not isinstance(number, (int, float)))
            bad = bad or (key in ("factor", "original_max_position_embeddings") and number < 1)
        if bad:
            raise UserError(f"{where}: {key}={number!r} is no valid value")
    if kind == "llama3" and scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
        raise UserError(f"{where}: high_freq_factor must be greater than low_freq_factor")
    if kind == "yarn":
        scaling.setdefault("original_max_position_embeddings", window)
    return scaling


def window(config: Any) -> int:
    """Longest sequence in tokens that a model is configured for, its rope scaling counted in.

    YaRN reaches its factor times the original window and linear scaling its factor times
    ``max_position_embeddings``, whatever else the file says; Llama 3 files state the extended window themselves.
    """
    scaling, stated = rope_scaling_of(config), int(config.max_position_embeddings)
    if scaling is None or scaling["rope_type"] == "llama3":
        return stated
    return int(scaling["factor"] * scaling.get("original_max_position_embeddings", stated))


def attention_window(config: Any) -> tuple[int, list[bool]] | None:
    """Sliding-window attention: tokens that a query sees (its own included), and which layers have it.

    ``None`` where no layer has it, or the window covers the whole context.
    """
    size = getattr(config, "sliding_window", None)
    if size is None or size >= window(config):
        return None
    layers = [True] * config.num_hidden_layers
    if config.model_type != "mistral":  # whose layers are all alike in transformers
        layers = [kind == "sliding_attention" for kind in config.layer_types]
    return (int(size), layers) if any(layers) else None


def head_dim(config: Any) -> int:
    """Width of one attention head; Qwen3 and some Llama models state it apart from the hidden size."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def read_config(
    folder: Path,
    *,
    rope_scaling: Mapping[str, Any] | None = None,
    rope_key: str = "rope_scaling",
    trust_remote_code: bool = False,
) -> Any:
    """Read and check the configuration of a model folder.

    Args:
        folder: Hugging Face folder.
        rope_scaling: replaces the model's own. For YaRN and Llama 3 ``max_position_embeddings`` then becomes the
            extended window, as transformers and inference servers expect beside ``original_max_position_embeddings``.
        rope_key: how a message names ``rope_scaling``.
        trust_remote_code: run Python code that the folder brings.

    Returns:
        The transformers configuration.

    Raises:
        UserError: no readable configuration, or a model that Megatron's layers would compute differently.
    """
    from transformers import AutoConfig

    file = folder / "config.json"
    try:
        kind = json.loads(file.read_text(encoding="utf-8")).get("model_type")
    except OSError as error:
        raise UserError(f"{folder}: no Hugging Face folder, config.json cannot be read ({error.strerror})") from None
    except (ValueError, AttributeError) as error:
        raise UserError(f"{file}: not a JSON object ({error})") from None
    if kind not in ARCHITECTURES:
        raise UserError(f"{folder}: model_type {kind!r} is not supported; {SUPPORTED}")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:  # whatever transformers makes of a damaged file
        raise UserError(f"{file}: {' '.join(str(error).split())}") from None
    _check(config, file)
    if rope_scaling is not None:
        stated = int(config.max_position_embeddings)
        config.rope_scaling = scaling = _normal(rope_scaling, stated, rope_key)
        if scaling and scaling["rope_type"] != "linear":
            reached = int(scaling["factor"] * scaling["original_max_position_embeddings"])
            config.max_position_embeddings = max(stated, reached)
    return config


def _check(config: Any, file: Path) -> None:
    architecture, named = ARCHITECTURES[config.model_type], config.architectures
    if named and architecture not in named:
        raise UserError(f"{file}: architectures {named}: only {architecture}, the language model itself, is supported")
    if getattr(config, "quantization_config", None):
        raise UserError(f"{file}: quantization_config: quantized weights cannot be trained; take the original model")
    for key, only in (
        ("hidden_act", "silu"),
        ("attention_bias", False),
        ("mlp_bias", False),
        ("partial_rotary_factor", 1.0),
    ):
        if getattr(config, key, only) != only:
            raise UserError(f"{file}: {key}={getattr(config, key)} is not supported, only {only}")
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    if heads % groups:
        raise UserError(f"{file}: num_key_value_heads={groups} does not divide num_attention_heads={heads}")
    rope_scaling_of(config)


def copy_template(source: Path, destination: Path, changes: Mapping[str, Any], *, code: bool = False) -> None:
    """Copy all of a Hugging Face folder but its weights: configuration, tokenizer, chat templates, licence.

    Args:
        source: Hugging Face folder.
        destination: made where missing.
        changes: keys to replace in ``config.json``; without any that file stays the same to the byte.
        code: copy Python files too.
    """
    destination.mkdir(parents=True, exist_ok=True)
    for pattern in (*TEMPLATE_PATTERNS, *(("*.py",) if code else ())):
        for file in source.glob(pattern):
            if file.is_file() and file.name not in NOT_TEMPLATE:
                target = destination / file.relative_to(source)
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, target)
    if changes:
        copied = destination / "config.json"
        settings = json.loads(copied.read_text(encoding="utf-8")) | changes
        copied.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def rope_changes(config: Any, rope_scaling: Mapping[str, Any] | None) -> dict[str, Any]:
    """What :func:`read_config` changed for ``rope_scaling``, for :func:`copy_template`."""
    keys = () if rope_scaling is None else ("rope_scaling", "max_position_embeddings")
    return {key: getattr(config, key) for key in keys}
