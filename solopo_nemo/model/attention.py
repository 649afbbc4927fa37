"""Core attention without Transformer Engine: torch SDPA, packed input, context parallelism.

Megatron-core's own local attention forms the S x S matrix and refuses both packed (THD) input and
context parallelism. This one stands beside Transformer Engine's in a layer spec, takes the same
arguments and gives the same result, so that the CPU runs the same Megatron code path as a GPU.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

from solopo_nemo.environment import CPU_CONTEXT_MODES


class _AllToAll(torch.autograd.Function):
    """Exchange dim 0 (one entry a rank); the gradient goes back the same way."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        x = x.contiguous()
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        dist.all_to_all_single(out, x, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _AllToAll.apply(grad, ctx.group), None


class _Gather(torch.autograd.Function):
    """Gather along a new dim 0 (one entry a rank); the gradient is summed and scattered back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        out = x.new_empty((group.size(), *x.shape))
        dist.all_gather_into_tensor(out.flatten(0, 1), x.contiguous(), group=group)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        out = grad.new_empty(grad.shape[1:])
        dist.reduce_scatter_tensor(out, grad.contiguous().flatten(0, 1), group=ctx.group)
        return out, None


def join_zigzag(x: torch.Tensor) -> torch.Tensor:
    """Put one sequence in its natural order: ``[cp, 2c, ...]`` (a rank's two chunks) -> ``[2 * cp * c, ...]``."""
    low, high = x.chunk(2, dim=1)
    return torch.cat((low, high.flip(0))).flatten(0, 1)


def split_zigzag(x: torch.Tensor, cp: int) -> torch.Tensor:
    """Inverse of :func:`join_zigzag`."""
    low, high = x.unflatten(0, (2, cp, -1)).unbind(0)
    return torch.cat((low, high.flip(0)), dim=1)


def _causal(scale: float, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal attention of one sequence, ``[s, heads, dim]``; the flash kernel, also with grouped K/V heads."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return out[0].transpose(0, 1)


class _ChunkAttention(torch.autograd.Function):
    """Queries of one zig-zag chunk against all keys up to and including that chunk.

    Two flash kernels (the past, unmasked; the chunk itself, causal) merged by their log-sum-exp;
    backward gives each the merged output and normalizer, as ring attention does. Layout
    ``[1, heads, s, dim]``.
    """

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, past: int, scale: float) -> torch.Tensor:
        def attend(keys: torch.Tensor, values: torch.Tensor, causal: bool) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q, keys, values, 0.0, causal, attn_mask=None, scale=scale
            )

        out, lse = attend(k[:, :, past:], v[:, :, past:], True)
        if past:
            before, before_lse = attend(k[:, :, :past], v[:, :, :past], False)
            total = torch.logaddexp(lse, before_lse)
            weight, before_weight = (lse - total).exp()[..., None], (before_lse - total).exp()[..., None]
            out = (out.float() * weight + before.float() * before_weight).to(q.dtype)
            lse = total
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.past, ctx.scale = past, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        past, grad = ctx.past, grad.contiguous()

        def back(keys: torch.Tensor, values: torch.Tensor, causal: bool) -> tuple[torch.Tensor, ...]:
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad, q, keys, values, out, lse, 0.0, causal, attn_mask=None, scale=ctx.scale
            )

        dk, dv = torch.empty_like(k), torch.empty_like(v)
        dq, dk[:, :, past:], dv[:, :, past:] = back(k[:, :, past:], v[:, :, past:], True)
        if past:
            dq_past, dk[:, :, :past], dv[:, :, :past] = back(k[:, :, :past], v[:, :, :past], False)
            dq = dq + dq_past
        return dq, dk, dv, None, None


class SDPACoreAttention(MegatronModule):
    """Causal core attention over packed sequences, ``[T, heads, dim]`` in and ``[T, heads * dim]`` out.

    Valid under TP (heads are split before it), SP, PP, DP and CP. Under CP, ``cp_comm_type`` picks:

    * ``a2a`` (Ulysses): heads are exchanged for positions; each rank attends over whole sequences with
      ``heads / cp`` heads. K/V heads are repeated where there are fewer than ranks.
    * ``all_gather``: queries stay, K/V are gathered sequence by sequence. No limit from the head count.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ) -> None:
        super().__init__(config=config)
        groups = pg_collection or ProcessGroupCollection.use_mpu_process_groups(required_pgs=["tp", "cp"])
        self.cp_group: dist.ProcessGroup = groups.cp
        self.softmax_scale = softmax_scale or 1.0 / math.sqrt(config.kv_channels)
        self.mode = cp_comm_type or "a2a"
        if self.mode not in CPU_CONTEXT_MODES:
            modes = ", ".join(CPU_CONTEXT_MODES)
            raise ValueError(f"cp_comm_type {self.mode!r}: without Transformer Engine one of {modes}")
        if config.attention_dropout if attention_dropout is None else attention_dropout:
            raise ValueError("attention_dropout must be 0 without Transformer Engine")

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> torch.Tensor:
        """Attend within each packed sequence; unpacked ``[s, b, heads, dim]`` is one sequence a batch row."""
        if packed_seq_params is None:
            rows = [self._packed(query[:, i], key[:, i], value[:, i], None) for i in range(query.shape[1])]
            return torch.stack(rows, dim=1)
        return self._packed(query, key, value, packed_seq_params.cu_seqlens_q)

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """One whole sequence, ``[s, heads, dim]``."""
        return _causal(self.softmax_scale, q, k, v)

    def _packed(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: torch.Tensor | None
    ) -> torch.Tensor:
        cp = self.cp_group.size()
        local = [q.shape[0]] if cu_seqlens is None else (cu_seqlens.diff() // cp).tolist()
        if cp == 1:
            parts = zip(*(x.split(local) for x in (q, k, v)), strict=True)
            out = [self._attend(*part) for part in parts]
            return torch.cat(out).flatten(1)
        if self.mode == "a2a":
            return self._all_to_all(q, k, v, local, cp).flatten(1)
        return self._all_gather(q, k, v, local, cp).flatten(1)

    def _all_to_all(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, local: list[int], cp: int) -> torch.Tensor:
        repeat = cp // math.gcd(cp, k.shape[1])
        if repeat > 1:
            k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        # [T, heads, dim] -> [cp, T, heads / cp, dim]: all positions, this rank's heads
        q, k, v = (_AllToAll.apply(x.unflatten(1, (cp, -1)).transpose(0, 1), self.cp_group) for x in (q, k, v))
        out = [
            split_zigzag(self._attend(*(join_zigzag(x) for x in part)), cp)
            for part in zip(*(x.split(local, 1) for x in (q, k, v)), strict=True)
        ]
        return _AllToAll.apply(torch.cat(out, 1), self.cp_group).transpose(0, 1).flatten(1, 2)

    def _all_gather(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, local: list[int], cp: int) -> torch.Tensor:
        rank, out = self.cp_group.rank(), []
        for q_part, kv_part in zip(q.split(local), torch.stack((k, v), 1).split(local), strict=True):
            keys, values = join_zigzag(_Gather.apply(kv_part, self.cp_group)).permute(1, 2, 0, 3)[:, None]
            c = q_part.shape[0] // 2
            for chunk, index in zip(q_part.split(c), (rank, 2 * cp - 1 - rank), strict=True):
                past, end = index * c, (index + 1) * c
                attended = _ChunkAttention.apply(
                    chunk.transpose(0, 1)[None], keys[:, :, :end], values[:, :, :end], past, self.softmax_scale
                )
                out.append(attended[0].transpose(0, 1))
        return torch.cat(out)
