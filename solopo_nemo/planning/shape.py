"""The numbers of a model that memory and time depend on, from a Hugging Face configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.paths import ASSETS, EMBEDDED_MODEL

NAMED_SHAPES = ASSETS / "model_shapes.json"
"""Public configurations by hub name, so that a plan needs neither the model nor the network."""


@dataclass(frozen=True)
class ModelShape:
    """A dense decoder with RMSNorm, grouped-query attention and a gated MLP.

    The names are Hugging Face's, so that :func:`solopo_nemo.config.world.check_model` takes a shape as it takes a
    configuration.

    Attributes:
        head_dim: size of one attention head (``hidden_size / num_attention_heads`` unless the model says otherwise).
        qkv_bias: whether the query, key and value projections have a bias.
        qk_norm: whether queries and keys are normalized by head (Qwen3).
        max_position_embeddings: the model's window, tokens.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool
    qkv_bias: bool
    qk_norm: bool
    max_position_embeddings: int

    @property
    def query_size(self) -> int:
        """Width of the queries, all heads: ``heads * head_dim``."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of the keys, all heads; the values have the same."""
        return self.num_key_value_heads * self.head_dim

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> ModelShape:
        """The shape of a Hugging Face ``config.json``, or of ``PretrainedConfig.to_dict()``.

        Args:
            config: ``hidden_size``, ``num_hidden_layers`` and so on.

        Raises:
            UserError: a key is missing, or the architecture is one that the formulas do not cover.
        """
        kind = config.get("model_type")
        if kind not in _QKV_BIAS:
            raise UserError(f"model_type {kind!r} cannot be planned; known are {', '.join(_QKV_BIAS)}")
        try:
            heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
            bias = _QKV_BIAS[kind]
            return cls(
                hidden_size=hidden,
                intermediate_size=int(config["intermediate_size"]),
                num_hidden_layers=int(config["num_hidden_layers"]),
                num_attention_heads=heads,
                num_key_value_heads=int(config.get("num_key_value_heads") or heads),
                head_dim=int(config.get("head_dim") or hidden // heads),
                vocab_size=int(config["vocab_size"]),
                tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
                qkv_bias=bool(config.get("attention_bias", False)) if bias is None else bias,
                qk_norm=kind == "qwen3",
                max_position_embeddings=int(config["max_position_embeddings"]),
            )
        except KeyError as error:
            raise UserError(f"the model's configuration has no {error.args[0]}") from None


_QKV_BIAS: dict[str, bool | None] = {"qwen2": True, "llama": None, "qwen3": None, "mistral": False}
"""Architectures covered, and whether their query, key and value projections have a bias; None: ``attention_bias``."""


@cache
def named_shapes() -> dict[str, dict[str, Any]]:
    """Configurations that come with this project, by hub name."""
    named: dict[str, dict[str, Any]] = json.loads(NAMED_SHAPES.read_text())
    return named


def load_shape(init: str) -> ModelShape:
    """The shape of what ``model.init`` names: a local folder, ``builtin``, or a hub name.

    A hub name that :data:`NAMED_SHAPES` has is answered from there; for any other the hub is asked.

    Raises:
        UserError: no such model, or one that cannot be planned.
    """
    if init in named_shapes() and not Path(init).exists():
        return ModelShape.from_hf(named_shapes()[init])
    from transformers import AutoConfig

    from solopo_nemo.families.hf import is_checkpoint

    folder = EMBEDDED_MODEL if init == "builtin" else Path(init)
    source = str(folder / "hf" if is_checkpoint(folder) else folder if folder.is_dir() else init)
    try:
        config = AutoConfig.from_pretrained(source).to_dict()
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        known = ", ".join(named_shapes())
        raise UserError(
            f"model.init={init}: no such folder, and the hub did not give its configuration ({reason}); known without "
            f"either are {known}"
        ) from None
    try:
        return ModelShape.from_hf(config)
    except UserError as error:
        raise UserError(f"model.init={init}: {error}") from None
