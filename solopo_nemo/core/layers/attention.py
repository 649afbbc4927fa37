"""Core attention without Transformer Engine: torch's kernels, packed input, context parallelism.

Megatron-core's own local attention forms the ``S x S`` matrix and refuses packed (THD) input and context parallelism.
This one takes the arguments of Transformer Engine's attention in a layer spec and returns the same result, so that the
CPU runs the same Megatron code as a GPU.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.autograd.function import once_differentiable

from solopo_nemo.core.layers.packed_kernels import Pair, attend, attend_backward, slices
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


class _PackedAttention(torch.autograd.Function):
    """Causal attention within each of several packed sequences.

    Memory: saved are ``q, k, v, out``, ``4 * T * heads * dim`` (fewer for grouped K/V heads), and fp32 ``[heads, T]``.

    Args:
        q, k, v: ``[T, heads, dim]``.
        lengths: of the sequences, sum T.
        scale: of the scores.
        before: of :func:`solopo_nemo.core.layers.packed_kernels.attend`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        lengths: list[int],
        scale: float,
        before: int | None = None,
    ) -> torch.Tensor:
        # v is a view of the whole QKV projection, which would live as long as it
        k, v = k.contiguous(), v.contiguous()
        out, lse = torch.empty_like(q), q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)
        pairs = [(part, part) for part in slices(lengths)]
        for part, out_part, lse_part in attend(q, k, v, pairs, True, scale, before):
            out[part], lse[:, part] = out_part, lse_part
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.pairs, ctx.rest = pairs, (True, scale, before)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for part, _, *gradients in attend_backward(grad, q, k, v, out, lse, ctx.pairs, *ctx.rest):
            dq[part], dk[part], dv[part] = gradients
        return dq, dk, dv, None, None, None


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

    def pairs(self, source: int, parts: list[slice]) -> list[Pair]:
        """What the queries of this rank see of the keys of ``source``, for each sequence's local share.

        A share is two chunks of equal length, ``rank`` and ``2 * size - 1 - rank`` of the sequence. In local order a
        rank's own two chunks are causal as they stand; of another rank's keys the queries of a pair see all.
        """
        if source == self.rank:
            return [(part, part) for part in parts]
        middles = [(part.start + part.stop) // 2 for part in parts]
        if source < self.rank:
            return [(part, slice(part.start, middle)) for part, middle in zip(parts, middles, strict=True)]
        return [(slice(middle, part.stop), part) for part, middle in zip(parts, middles, strict=True)]


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
        ring, parts = _Ring(group), slices(lengths)
        own = torch.stack((k, v))
        out, lse = torch.empty_like(q), q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)
        kv = own
        for step in range(ring.size):
            source = (ring.rank - step) % ring.size
            begun = ring.start(kv) if step < ring.size - 1 else None
            for part, more, more_lse in attend(q, kv[0], kv[1], ring.pairs(source, parts), not step, scale):
                if step:
                    _merge(out[part], lse[:, part], more, more_lse)
                else:
                    out[part], lse[:, part] = more, more_lse
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
            mine, pairs = torch.zeros_like(kv), ring.pairs(source, ctx.parts)
            for q_slice, kv_slice, d, *gradients in attend_backward(
                grad, q, kv[0], kv[1], out, lse, pairs, not step, ctx.scale
            ):
                dq[q_slice] += d
                mine[0, kv_slice], mine[1, kv_slice] = gradients
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

    def _attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: list[int], before: int | None = None
    ) -> torch.Tensor:
        """Whole sequences of these lengths, packed ``[T, heads, dim]``; ``before`` as for the kernel."""
        return _PackedAttention.apply(q, k, v, lengths, self.softmax_scale, before)

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
    for part in slices(local):
        places = torch.arange(part.start, part.stop) + total * torch.arange(cp)[:, None]
        low, high = places.chunk(2, dim=1)
        order += [low.flatten(), high.flip(0).flatten()]
    return torch.cat(order)
