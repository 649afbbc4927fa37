"""Core attention without Transformer Engine: torch's flash kernel, packed input, context parallelism.

Megatron-core's own local attention forms the ``S x S`` matrix and refuses packed (THD) input and context parallelism.
This one takes the arguments of Transformer Engine's attention in a layer spec and returns the same result, so that the
CPU runs the same Megatron code as a GPU.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.autograd.function import once_differentiable

from solopo_nemo.runtime.kernels import OFFERED


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


def _heads_first(x: torch.Tensor) -> torch.Tensor:
    """``[s, heads, dim]`` as the flash kernel has it, ``[1, heads, s, dim]``; a view."""
    return x.transpose(0, 1)[None]


def _flash(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output ``[s, heads, dim]`` and log-sum-exp ``[heads, s]`` of one sequence, also with grouped K/V heads."""
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *map(_heads_first, (q, k, v)), 0.0, causal, attn_mask=None, scale=scale
    )
    return out[0].transpose(0, 1), lse[0]


def _flash_backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k and v.

    ``out`` and ``lse`` may be those over more keys than ``k`` holds; the gradients are then these keys' summand.
    """
    grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        *map(_heads_first, (grad, q, k, v, out)), lse[None], 0.0, causal, attn_mask=None, scale=scale
    )
    dq, dk, dv = (g[0].transpose(0, 1) for g in grads)
    return dq, dk, dv


class _PackedAttention(torch.autograd.Function):
    """Causal attention within each of several packed sequences, one call of the flash kernel a sequence.

    Memory: saved are ``q, k, v, out``, ``4 * T * heads * dim`` (fewer for grouped K/V heads), and fp32 ``[heads, T]``.

    Args:
        q, k, v: ``[T, heads, dim]``.
        lengths: of the sequences, sum T.
        scale: of the scores.
    """

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: list[int], scale: float
    ) -> torch.Tensor:
        # v is a view of the whole QKV projection, which would live as long as it
        k, v = k.contiguous(), v.contiguous()
        out, lse = torch.empty_like(q), q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)
        for part in _slices(lengths):
            out[part], lse[:, part] = _flash(q[part], k[part], v[part], True, scale)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.lengths, ctx.scale = lengths, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for part in _slices(ctx.lengths):
            dq[part], dk[part], dv[part] = _flash_backward(
                grad[part], q[part], k[part], v[part], out[part], lse[:, part], True, ctx.scale
            )
        return dq, dk, dv, None, None


def _slices(lengths: list[int]) -> list[slice]:
    ends = list(accumulate(lengths))
    return [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]


class _Ring:
    """Passes tensors around a context-parallel group, from each rank to the next."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.size, self.rank, self.group = group.size(), group.rank(), group
        self._next = dist.get_global_rank(group, (self.rank + 1) % self.size)
        self._previous = dist.get_global_rank(group, (self.rank - 1) % self.size)

    def start(self, x: torch.Tensor) -> tuple[torch.Tensor, list[Any]]:
        """Begin to send ``x`` to the next rank; the tensor of the previous rank is complete after :meth:`finish`."""
        arriving = torch.empty_like(x)
        operations = [
            dist.P2POp(dist.isend, x, self._next, self.group),
            dist.P2POp(dist.irecv, arriving, self._previous, self.group),
        ]
        return arriving, dist.batch_isend_irecv(operations)

    @staticmethod
    def finish(begun: tuple[torch.Tensor, list[Any]]) -> torch.Tensor:
        """Wait for a transfer that :meth:`start` began; the tensor that arrived."""
        for work in begun[1]:
            work.wait()
        return begun[0]

    def visible(self, source: int, part: slice) -> tuple[slice, slice]:
        """Slices of the queries of one sequence's local share and of the keys of another rank's that they all see.

        A share is two chunks of equal length, ``rank`` and ``2 * size - 1 - rank`` of the sequence.
        """
        middle = (part.start + part.stop) // 2
        if source < self.rank:
            return part, slice(part.start, middle)
        return slice(middle, part.stop), part


class _RingAttention(torch.autograd.Function):
    """Causal attention of packed sequences that are split zig-zag over the ranks of a ring (ring attention).

    1. Attend to this rank's own keys and values, while they are sent to the next rank.
    2. For each share that arrives: attend to the keys that are visible, and merge the result by log-sum-exp.
    3. Backward goes around the ring again; the gradient of each share of keys and values travels with it.

    Memory: saved is this rank's share alone, as for :class:`_PackedAttention`; besides, one neighbour's keys and
    values, and in backward their gradient. Arguments as :class:`_PackedAttention`; the lengths are the local ones.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        lengths: list[int],
        scale: float,
        group: dist.ProcessGroup,
    ) -> torch.Tensor:
        ring, parts = _Ring(group), _slices(lengths)
        own = torch.stack((k, v))
        out, lse = torch.empty_like(q), q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)
        kv = own
        for step in range(ring.size):
            source = (ring.rank - step) % ring.size
            begun = ring.start(kv) if step < ring.size - 1 else None
            for part in parts:
                if not step:  # in local order this rank's two chunks are causal as they stand
                    out[part], lse[:, part] = _flash(q[part], kv[0, part], kv[1, part], True, scale)
                    continue
                q_slice, kv_slice = ring.visible(source, part)
                more, more_lse = _flash(q[q_slice], kv[0, kv_slice], kv[1, kv_slice], False, scale)
                _merge(out[q_slice], lse[:, q_slice], more, more_lse)
            if begun:
                kv = ring.finish(begun)
        ctx.save_for_backward(q, own, out, lse)
        ctx.ring, ctx.parts, ctx.scale = ring, parts, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, kv, out, lse = ctx.saved_tensors
        ring: _Ring = ctx.ring
        dq = torch.zeros_like(q)
        d_kv = torch.zeros_like(kv)  # sent on with the keys and values that it belongs to
        for step in range(ring.size):
            source = (ring.rank - step) % ring.size
            begun = ring.start(kv) if step < ring.size - 1 else None
            mine = torch.zeros_like(kv)
            for part in ctx.parts:
                q_slice, kv_slice = ring.visible(source, part) if step else (part, part)
                d, mine[0, kv_slice], mine[1, kv_slice] = _flash_backward(
                    grad[q_slice],
                    q[q_slice],
                    kv[0, kv_slice],
                    kv[1, kv_slice],
                    out[q_slice],
                    lse[:, q_slice],
                    not step,
                    ctx.scale,
                )
                dq[q_slice] += d
            d_kv = ring.finish(ring.start(d_kv.add_(mine)))
            if begun:
                kv = ring.finish(begun)
        dk, dv = d_kv
        return dq, dk, dv, None, None, None


def _merge(out: torch.Tensor, lse: torch.Tensor, more: torch.Tensor, more_lse: torch.Tensor) -> None:
    """Add attention over further keys to ``out`` ``[s, heads, dim]`` and ``lse`` ``[heads, s]``, in place."""
    total = torch.logaddexp(lse, more_lse)
    weight, more_weight = ((x - total).exp_().t()[..., None] for x in (lse, more_lse))
    out.copy_(more.float().mul_(more_weight).addcmul_(out.float(), weight))
    lse.copy_(total)


class SDPACoreAttention(MegatronModule):
    """Causal core attention over packed sequences, ``[T, heads, dim]`` in and ``[T, heads * dim]`` out.

    TP: each rank has ``heads / TP`` heads. SP, PP, DP: nothing to do here. CP: ``cp_comm_type`` says how:

    * ``p2p`` (ring): queries stay, keys and values go from rank to rank. Any number of heads; no tensor is longer than
      a rank's share.
    * ``a2a`` (Ulysses): an all-to-all exchanges heads for positions; each rank attends over whole sequences with
      ``heads / CP`` heads. K/V heads are repeated where there are fewer than ranks.
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
        self.cp_comm_type = cp_comm_type or "p2p"
        if self.cp_comm_type not in OFFERED:
            modes = ", ".join(OFFERED)
            raise ValueError(f"cp_comm_type {self.cp_comm_type!r}: without Transformer Engine one of {modes}")
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

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        """Whole sequences of these lengths, packed ``[T, heads, dim]``."""
        return _PackedAttention.apply(q, k, v, lengths, self.softmax_scale)

    def _packed(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: torch.Tensor | None
    ) -> torch.Tensor:
        cp = self.cp_group.size()
        local = [q.shape[0]] if cu_seqlens is None else (cu_seqlens.diff() // cp).tolist()
        if cp == 1:
            return self._attend(q, k, v, local).flatten(1)
        if self.cp_comm_type == "a2a":
            return self._all_to_all(q, k, v, local, cp).flatten(1)
        return _RingAttention.apply(q, k, v, local, self.softmax_scale, self.cp_group).flatten(1)

    def _all_to_all(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, local: list[int], cp: int) -> torch.Tensor:
        repeat = cp // math.gcd(cp, k.shape[1])
        if repeat > 1:
            k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        order = _natural_order(local, cp).to(q.device)
        # [T, heads, dim] -> [cp, T, heads / cp, dim]: all positions, this rank's heads
        q, k, v = (
            _AllToAll.apply(x.unflatten(1, (cp, -1)).transpose(0, 1), self.cp_group).flatten(0, 1)[order]
            for x in (q, k, v)
        )
        out = self._attend(q, k, v, [cp * n for n in local])
        out = out[order.argsort()].unflatten(0, (cp, -1))
        return _AllToAll.apply(out, self.cp_group).transpose(0, 1).flatten(1, 2)


def _natural_order(local: list[int], cp: int) -> torch.Tensor:
    """Index into ``[cp * T]``, the ranks' tokens one after the other, of each token of the sequences in their order."""
    total, order = sum(local), []
    for part in _slices(local):
        places = torch.arange(part.start, part.stop) + total * torch.arange(cp)[:, None]
        low, high = places.chunk(2, dim=1)
        order += [low.flatten(), high.flip(0).flatten()]
    return torch.cat(order)
