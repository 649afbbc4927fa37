"""Core attention without Transformer Engine: torch's kernels, packed input, context parallelism.

Megatron-core's own local attention forms the ``S x S`` matrix and refuses packed (THD) input and context parallelism.
This one takes the arguments of Transformer Engine's attention in a layer spec and returns the same result, so that the
CPU runs the same Megatron code as a GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.mappings import all_to_all
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.autograd.function import once_differentiable

from solopo_nemo.core.layers.packed_kernels import Sequences, attend, attend_backward
from solopo_nemo.runtime.kernels import OFFERED


@dataclass
class PackedSequences(PackedSeqParams):
    """Megatron's description of a packed micro-batch, which knows the lengths as Python numbers too.

    What layers need of them is made once a micro-batch, on the device: no layer waits for a GPU, or copies to it.

    Attributes:
        lengths: of the sequences over all context-parallel ranks, padding included.
        cp_size: context-parallel size.
    """

    lengths: list[int] = field(default_factory=list)
    cp_size: int = 1

    @classmethod
    def of(cls, lengths: list[int], starts: torch.Tensor, cp_size: int = 1) -> PackedSequences:
        """Sequences of these lengths; ``starts`` int32 ``[sequences + 1]``, their boundaries, on the device."""
        longest = max(lengths)
        return cls("thd", starts, starts, max_seqlen_q=longest, max_seqlen_kv=longest, lengths=lengths, cp_size=cp_size)

    @cached_property
    def whole(self) -> Sequences:
        """The sequences over all context-parallel ranks."""
        return Sequences(self.lengths, self.cu_seqlens_q)

    @cached_property
    def shares(self) -> tuple[Sequences, Sequences, Sequences]:
        """A rank's share of each sequence, its first half and its second half."""
        lengths, starts = [n // self.cp_size for n in self.lengths], self.cu_seqlens_q // self.cp_size
        return Sequences(lengths, starts), Sequences(lengths, starts, 0), Sequences(lengths, starts, 1)

    @cached_property
    def order(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Index into ``[cp * T]``, the ranks' tokens one after the other, of each token in order; and its inverse."""
        parts, ranks = self.shares[0].parts, torch.arange(self.cp_size, device=self.cu_seqlens_q.device)[:, None]
        order = []
        for part in parts:
            places = torch.arange(part.start, part.stop, device=ranks.device) + parts[-1].stop * ranks
            low, high = places.chunk(2, dim=1)
            order += [low.flatten(), high.flip(0).flatten()]
        natural = torch.cat(order)
        return natural, natural.argsort()


class _PackedAttention(torch.autograd.Function):
    """Causal attention within each of several packed sequences.

    Memory: saved are ``q, k, v, out``, ``4 * T * heads * dim`` (fewer for grouped K/V heads), and fp32 ``[heads, T]``.

    Args:
        q, k, v: ``[T, heads, dim]``.
        sequences: all T tokens.
        scale: of the scores.
        before: of :func:`solopo_nemo.core.layers.packed_kernels.attend`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        sequences: Sequences,
        scale: float,
        before: int | None = None,
    ) -> torch.Tensor:
        # v is a view of the whole QKV projection, which would live as long as it
        k, v = k.contiguous(), v.contiguous()
        out, lse = torch.empty_like(q), q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)
        for part, out_part, lse_part in attend(q, k, v, sequences, sequences, True, scale, before):
            out[part], lse[:, part] = out_part, lse_part
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.rest = sequences, sequences, True, scale, before
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for part, _, *gradients in attend_backward(grad, q, k, v, out, lse, *ctx.rest):
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

    def seen(self, source: int, shares: tuple[Sequences, Sequences, Sequences]) -> tuple[Sequences, Sequences]:
        """Which queries of this rank see which keys of ``source``.

        A share is two chunks of equal length, ``rank`` and ``2 * size - 1 - rank`` of the sequence. In local order a
        rank's own two chunks are causal as they stand; of another rank's keys the queries of a pair see all.
        """
        share, first, second = shares
        if source == self.rank:
            return share, share
        return (share, first) if source < self.rank else (second, share)


class _RingAttention(torch.autograd.Function):
    """Causal attention of packed sequences that are split zig-zag over the ranks of a ring (ring attention).

    1. Attend to this rank's own keys and values, while they are sent to the next rank.
    2. For each share that arrives: attend to the keys that are visible, and merge the result by log-sum-exp.
    3. Backward goes around the ring again; the gradient of each share of keys and values travels with it.

    Memory: saved is this rank's share alone, as for :class:`_PackedAttention`; besides, one neighbour's keys and
    values, and in backward their gradient. Arguments as :class:`_PackedAttention`; ``shares`` as
    :class:`PackedSequences` has them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        shares: tuple[Sequences, Sequences, Sequences],
        scale: float,
        group: dist.ProcessGroup,
    ) -> torch.Tensor:
        ring = _Ring(group)
        own = torch.stack((k, v))
        out, lse = torch.empty_like(q), q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)
        kv = own
        for step in range(ring.size):
            source = (ring.rank - step) % ring.size
            begun = ring.start(kv) if step < ring.size - 1 else None
            for part, more, more_lse in attend(q, kv[0], kv[1], *ring.seen(source, shares), not step, scale):
                if step:
                    _merge(out[part], lse[:, part], more, more_lse)
                else:
                    out[part], lse[:, part] = more, more_lse
            if begun:
                kv = ring.finish(begun)
        ctx.save_for_backward(q, own, out, lse)
        ctx.ring, ctx.shares, ctx.scale = ring, shares, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, kv, out, lse = ctx.saved_tensors
        ring: _Ring = ctx.ring
        dq, own = torch.zeros_like(q), torch.empty_like(kv)
        d_kv = torch.zeros_like(kv)  # of another rank's share, with which it travels, and at last to its owner
        for step in range(ring.size):
            source = (ring.rank - step) % ring.size
            begun = ring.start(kv) if step < ring.size - 1 else None
            seen = ring.seen(source, ctx.shares)
            for q_slice, kv_slice, d, d_key, d_value in attend_backward(
                grad, q, kv[0], kv[1], out, lse, *seen, not step, ctx.scale
            ):
                dq[q_slice] += d
                if step:
                    d_kv[0, kv_slice] += d_key
                    d_kv[1, kv_slice] += d_value
                else:
                    own[0, kv_slice], own[1, kv_slice] = d_key, d_value
            if step:
                d_kv = ring.finish(ring.start(d_kv))
            if begun:
                kv = ring.finish(begun)
        dk, dv = own.add_(d_kv)
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
        packed_seq_params: PackedSequences | None = None,
    ) -> torch.Tensor:
        """Attend within each packed sequence; unpacked ``[s, b, heads, dim]`` is one sequence a batch row."""
        if packed_seq_params is None:
            length, cp = query.shape[0], self.cp_group.size()
            starts = torch.tensor([0, length * cp], dtype=torch.int32, device=query.device)
            one = PackedSequences.of([length * cp], starts, cp)
            rows = [self._packed(query[:, i], key[:, i], value[:, i], one) for i in range(query.shape[1])]
            return torch.stack(rows, dim=1)
        return self._packed(query, key, value, packed_seq_params)

    def _attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sequences: Sequences, before: int | None = None
    ) -> torch.Tensor:
        """Whole sequences, packed ``[T, heads, dim]``; ``before`` as for the kernel."""
        return _PackedAttention.apply(q, k, v, sequences, self.softmax_scale, before)

    def _packed(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, packed: PackedSequences) -> torch.Tensor:
        if self.cp_group.size() == 1:
            return self._attend(q, k, v, packed.whole).flatten(1)
        if self.cp_comm_type == "a2a":
            return self._all_to_all(q, k, v, packed).flatten(1)
        return _RingAttention.apply(q, k, v, packed.shares, self.softmax_scale, self.cp_group).flatten(1)

    def _all_to_all(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, packed: PackedSequences) -> torch.Tensor:
        cp = packed.cp_size
        repeat = cp // math.gcd(cp, k.shape[1])
        if repeat > 1:
            k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        order, inverse = packed.order
        # [T, heads, dim] -> [cp, T, heads / cp, dim]: all positions, this rank's heads
        q, k, v = (
            all_to_all(self.cp_group, x.unflatten(1, (cp, -1)).transpose(0, 1)).flatten(0, 1)[order] for x in (q, k, v)
        )
        out = self._attend(q, k, v, packed.whole)[inverse].unflatten(0, (cp, -1))
        return all_to_all(self.cp_group, out).transpose(0, 1).flatten(1, 2)
