"""Scaled rotary embeddings of NeMo models: linear, Llama 3 and YaRN."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from solopo_nemo.core.layers.extras import extras


@dataclass
class RopeScaled:
    """Mixin of NeMo's GPT configs: rope scaling as transformers defines it.

    transformers computes the inverse frequencies. Its YaRN multiplies queries and keys by an attention factor ``a``;
    here the softmax scale is ``a^2 / sqrt(head_dim)``, which is equal and works with every rotary kernel.
    TP, SP, CP, PP, DP: each rank builds the same table, and Megatron takes the rows of its positions.

    Megatron-core's ``position_embedding_type="yarn"`` (0.15.3) is not used: it drops the flag for packed input
    (gpt_model.py:352), so that CP splits the table twice, and its fused kernels ignore the attention factor
    (rope_utils.py, ``apply_rotary_pos_emb``). NeMo's importer keeps only the factor of Llama 3's scaling.

    Attributes:
        rope_scaling: the Hugging Face mapping with ``rope_type``, or ``None``.
        query_pre_attn_scalar: attention scores are divided by its square root; ``None`` takes the head size.
    """

    rope_scaling: dict[str, Any] | None = None
    query_pre_attn_scalar: float | None = None

    def configure_model(self, *args: Any, **kwargs: Any) -> Any:
        """Builds the Megatron model with the scaled frequencies in its rotary embedding."""
        config: Any = self
        base: Any = super()
        scaling, local = self.rope_scaling, extras(config).rotary_base_local is not None
        frequencies, factor = self._scaled() if scaling else (None, 1.0)
        if scaling or self.query_pre_attn_scalar:
            of_all = 1.0 if local else factor**2
            config.softmax_scale = of_all / math.sqrt(self.query_pre_attn_scalar or config.kv_channels)
        model = base.configure_model(*args, **kwargs)
        if frequencies is not None:
            rotary = model.rotary_pos_emb
            rotary.inv_freq = frequencies.to(rotary.inv_freq.device)
        for layer in model.decoder.layers if local and factor != 1.0 else ():
            if not layer.self_attention.rotary_kind:  # the layers with a base of their own are not scaled
                layer.self_attention.core_attention.softmax_scale *= factor**2
        return model

    def _scaled(self) -> tuple[torch.Tensor, float]:
        from transformers import LlamaConfig
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        config: Any = self
        described = LlamaConfig(  # carries the values; transformers 4 and 5 both accept this spelling
            rope_theta=config.rotary_base,
            head_dim=config.kv_channels,
            hidden_size=config.kv_channels,
            num_attention_heads=1,
            max_position_embeddings=config.seq_length,
            rope_scaling=dict(config.rope_scaling),
        )
        return ROPE_INIT_FUNCTIONS[config.rope_scaling["rope_type"]](described, torch.device("cpu"))
