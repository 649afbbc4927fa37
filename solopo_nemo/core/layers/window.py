"""Sliding-window attention without Transformer Engine (Mistral 7B v0.1, Gemma 3 and relatives)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig

from solopo_nemo.core.layers.attention import SDPACoreAttention
from solopo_nemo.core.layers.packed_kernels import Sequences
from solopo_nemo.core.layers.rotary import has_window
from solopo_nemo.runtime import device


class WindowCoreAttention(SDPACoreAttention):
    """Causal attention in which a query sees ``window_size[0]`` tokens before its own; not in skipped layers.

    Valid under TP, SP, PP, DP, and CP by ``a2a``, where each rank attends over whole sequences.
    """

    def __init__(self, config: TransformerConfig, layer_number: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, layer_number, *args, **kwargs)
        if self.cp_group.size() > 1 and self.cp_comm_type != "a2a":
            raise ValueError(f"cp_comm_type {self.cp_comm_type!r}: sliding-window attention needs a2a")
        self.before = config.window_size[0] if has_window(config, layer_number) else None

    def _attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sequences: Sequences, before: int | None = None
    ) -> torch.Tensor:
        before = self.before
        if before is None or before >= sequences.longest - 1 or device.cuda():
            return super()._attend(q, k, v, sequences, before)
        return torch.cat([self._one(before, q[part], k[part], v[part]) for part in sequences.parts])

    def _one(self, before: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """One sequence, ``[s, heads, dim]``: block by block of queries, so that no ``s x s`` mask is formed."""
        length = q.shape[0]
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        out, block = [], max(128, before)
        for start in range(0, length, block):
            stop, first = min(start + block, length), max(0, start - before)
            distance = torch.arange(start, stop, device=q.device)[:, None] - torch.arange(first, stop, device=q.device)
            visible = (distance >= 0) & (distance <= before)
            out.append(
                F.scaled_dot_product_attention(
                    q[:, :, start:stop],
                    k[:, :, first:stop],
                    v[:, :, first:stop],
                    attn_mask=visible,
                    scale=self.softmax_scale,
                    enable_gqa=q.shape[1] != k.shape[1],
                )
            )
        return torch.cat(out, 2)[0].transpose(0, 1)
