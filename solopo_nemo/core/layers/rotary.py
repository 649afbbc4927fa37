"""Rotary embedding by the positions of this rank's own tokens, for layers without Transformer Engine.

Megatron-core (0.15.3) gives every layer the angles of the longest sequence, of full length on every context-parallel
rank (gpt_model.py:343). Each layer makes and keeps its own cosines and sines of them, for queries and for keys
(rope_utils.py:102). Here all layers share one table of the local positions, and a layer keeps nothing.

Memory: one table, ``4 * head_dim`` bytes a local token. With Transformer Engine its fused kernel stays, which takes the
angles of full length: ``4 * head_dim`` bytes a token of the longest sequence, made anew in each forward pass. Megatron
keeps the tables of 32 lengths (rotary_pos_embedding.py:150), and nearly every packed micro-batch has its own.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.utils import is_layer_window_attention

from solopo_nemo.core.layers.blockwise import blocks
from solopo_nemo.core.layers.extras import extras


class LocalRotaryEmbedding(torch.nn.Module):
    """Cosines and sines of the positions that a forward pass is given; replaces a ``GPTModel``'s own table.

    Valid under TP, SP, CP, PP and DP: positions are those of the rank's share, packed.

    Args:
        inv_freq: inverse frequencies, ``[kinds, head_dim / 2]`` fp32; a layer takes those of its own kind.
    """

    def __init__(self, inv_freq: torch.Tensor) -> None:
        super().__init__()
        self.inv_freq = inv_freq
        self._positions: torch.Tensor | None = None

    def at(self, positions: torch.Tensor) -> None:
        """Set the positions of the next forward pass, int64 ``[1, tokens]``."""
        self._positions = positions[0]

    def get_rotary_seq_len(self, *_: Any) -> int:
        """0: no table of full length is needed."""
        return 0

    def forward(self, *_: Any, **__: Any) -> torch.Tensor:
        """Cosines and sines, fp32 ``[2, tokens, kinds, head_dim / 2]``."""
        assert self._positions is not None
        angles = torch.outer(self._positions.to(self.inv_freq.dtype), self.inv_freq.flatten())
        return torch.stack((angles.cos(), angles.sin())).unflatten(-1, self.inv_freq.shape)


class FreshRotaryEmbedding(torch.nn.Module):
    """A ``GPTModel``'s own rotary embedding without the cache of its ``forward``: the same angles, kept by nobody.

    Valid under every parallelism: the table is of full length on every rank, and Transformer Engine's kernel takes each
    rank's positions from it.

    Args:
        rotary: Megatron-core's embedding, whose ``forward`` is an ``lru_cache``.
    """

    def __init__(self, rotary: Any) -> None:
        super().__init__()
        self.rotary: Any = rotary

    def get_rotary_seq_len(self, *args: Any, **kwargs: Any) -> int:
        """As the embedding."""
        return int(self.rotary.get_rotary_seq_len(*args, **kwargs))

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Angles, fp32 ``[longest, 1, 1, head_dim]``."""
        make = type(self.rotary).forward
        angles: torch.Tensor = getattr(make, "__wrapped__", make)(self.rotary, *args, **kwargs)
        return angles


def keep_no_tables(model: Any) -> None:
    """Give a built ``GPTModel`` the rotary embedding that its layers take, which keeps nothing of a micro-batch."""
    if model.position_embedding_type != "rope":
        return
    rotary, layers = model.rotary_pos_emb, model.decoder.layers
    if isinstance(rotary, FreshRotaryEmbedding | LocalRotaryEmbedding):
        return
    if not layers or not isinstance(layers[0].self_attention, LocalRotaryAttention):
        model.rotary_pos_emb = FreshRotaryEmbedding(rotary)
        return
    if model.config.rotary_interleaved or model.rotary_percent != 1.0:
        raise ValueError("without Transformer Engine rotary embeddings are neither interleaved nor partial")
    kinds, base = [rotary.inv_freq], extras(model.config).rotary_base_local
    if base is not None:  # by Megatron's formula (rotary_pos_embedding.py), which is transformers'
        dim = 2 * rotary.inv_freq.numel()
        kinds.append(1.0 / base ** (torch.arange(0, dim, 2, dtype=torch.float32, device=rotary.inv_freq.device) / dim))
    local = model.rotary_pos_emb = LocalRotaryEmbedding(torch.stack(kinds))
    model.register_forward_pre_hook(lambda _, arguments: local.at(arguments[1]))  # input_ids, position_ids, ...


def has_window(config: Any, layer_number: int) -> bool:
    """Whether a layer, counted from 1, has a sliding window."""
    return bool(is_layer_window_attention(config.window_size, config.window_attn_skip_freq, layer_number))


class LocalRotaryAttention(SelfAttention):
    """Self-attention that turns queries and keys by the table of :class:`LocalRotaryEmbedding`."""

    _table: torch.Tensor | None = None

    @property
    def rotary_kind(self) -> int:
        """Which of the table's inverse frequencies this layer has: 1 for the local base, else 0."""
        return int(extras(self.config).rotary_base_local is not None and has_window(self.config, self.layer_number))

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, *, rotary_pos_emb: Any, **kwargs: Any
    ) -> Any:
        """As ``SelfAttention``; ``rotary_pos_emb`` is the table of all kinds, ``None`` for a model without."""
        none = rotary_pos_emb is None or (self.config.no_rope_freq and self.config.no_rope_freq[self.layer_number - 1])
        self._table = None if none else rotary_pos_emb[:, :, self.rotary_kind]
        try:
            return super().forward(hidden_states, attention_mask, rotary_pos_emb=None, **kwargs)
        finally:
            self._table = None

    def get_query_key_value_tensors(self, *args: Any, **kwargs: Any) -> Any:
        """As ``SelfAttention``, queries and keys turned."""
        query, key, value = super().get_query_key_value_tensors(*args, **kwargs)
        if self._table is None:
            return query, key, value
        return _Rotate.apply(query, self._table), _Rotate.apply(key, self._table), value


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(table)
        return _rotated(x, table, 1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (table,) = ctx.saved_tensors
        return _rotated(gradient, table, -1), None


def _rotated(x: torch.Tensor, table: torch.Tensor, direction: int) -> torch.Tensor:
    """``x`` ``[tokens, 1, heads, head_dim]``, the halves of each head turned into each other, computed in fp32."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    for part in blocks(x.shape[0]):
        # both halves of a head by one product: its innermost loop is twice as long
        cos, sin = torch.cat((table[:, part],) * 2, -1)[:, :, None, None, :]
        (first, second), (first_across, second_across) = (x[part] * cos).chunk(2, -1), (x[part] * sin).chunk(2, -1)
        turned_first, turned_second = out[part].chunk(2, -1)
        torch.sub(first, second_across, alpha=direction, out=turned_first)
        torch.add(second, first_across, alpha=direction, out=turned_second)
    return out
