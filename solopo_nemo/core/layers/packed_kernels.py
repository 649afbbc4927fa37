"""Attention over packed sequences, forward and backward: the one place that calls a kernel of torch.

``q``, ``k``, ``v`` are ``[tokens, heads, dim]``, K/V perhaps with fewer heads. A list of :data:`Pair` says which
queries see which keys: a whole sequence sees itself, and the later steps of a ring see parts of others.

==========  ==========================================  =====================================================
device      type                                        kernel
==========  ==========================================  =====================================================
CPU         any                                         flash, one call a pair, on views
CUDA        fp16, bf16                                  variable-length flash, one call for all pairs
CUDA        fp32                                        variable-length memory-efficient, one call for all pairs
==========  ==========================================  =====================================================

The CUDA kernels are torch's own builds of flash-attn 2 and of xformers, under names that are the same from torch 2.9
to 2.13. torch's public function for packed input (``torch.nn.attention.varlen``) exists from 2.10 on, and its signature
changes with each version. The CUDA kernels have not run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

import torch

from solopo_nemo.runtime import device

Tensor = torch.Tensor
Pair = tuple[slice, slice]
"""A slice of the queries, and that of the keys which they see."""
_CAUSAL = 1
"""``custom_mask_type`` of the memory-efficient kernel: causal from the top left (sdp_utils.h of torch)."""
_ALIGNED = 32
"""The memory-efficient kernel pads the log-sum-exp to a multiple of it (kernel_forward.h: kAlignLSE)."""


def slices(lengths: list[int]) -> list[slice]:
    """Where sequences of these lengths lie, packed."""
    ends = list(accumulate(lengths))
    return [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]


def attend(
    q: Tensor, k: Tensor, v: Tensor, pairs: list[Pair], causal: bool, scale: float, before: int | None = None
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Attention of each pair.

    Args:
        q, k, v: ``[tokens, heads, dim]``.
        pairs: in the order of the tokens.
        causal: a query sees keys up to its own place; the slices of a pair are then equally long.
        scale: of the scores.
        before: with ``causal``, how many tokens before its own a query sees; ``None`` for all. CUDA only.

    Yields:
        A slice of the queries, its output ``[tokens, heads, dim]`` and log-sum-exp, fp32 ``[heads, tokens]``.
    """
    if not device.cuda():
        for q_slice, kv_slice in pairs:
            yield q_slice, *_cpu(q[q_slice], k[kv_slice], v[kv_slice], causal, scale)
        return
    packed = _Packed(q, k, pairs)
    kernel = _efficient if q.dtype == torch.float32 else _flash
    yield from packed.queries(*kernel(packed, packed.q(q), packed.kv(k), packed.kv(v), causal, scale, before))


def attend_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    pairs: list[Pair],
    causal: bool,
    scale: float,
    before: int | None = None,
) -> Iterator[tuple[slice, slice, Tensor, Tensor, Tensor]]:
    """Gradients of each pair.

    ``out`` and ``lse`` may be those over more keys than a pair's; the gradients are then these keys' summand.

    Yields:
        Slices of the queries and of the keys, and the gradients of q, k and v there.
    """
    if not device.cuda():
        for q_slice, kv_slice in pairs:
            given = (grad[q_slice], q[q_slice], k[kv_slice], v[kv_slice], out[q_slice], lse[:, q_slice])
            yield q_slice, kv_slice, *_cpu_backward(*given, causal, scale)
        return
    packed = _Packed(q, k, pairs)
    kernel = _efficient_backward if q.dtype == torch.float32 else _flash_backward
    given = (packed.q(grad), packed.q(q), packed.q(out), packed.kv(k), packed.kv(v), packed.q(lse.t()).t())
    yield from packed.both(*kernel(packed, *given, causal, scale, before))


def _heads_first(x: Tensor) -> Tensor:
    """``[s, heads, dim]`` as the CPU kernel has it, ``[1, heads, s, dim]``; a view."""
    return x.transpose(0, 1)[None]


def _cpu(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *map(_heads_first, (q, k, v)), 0.0, causal, attn_mask=None, scale=scale
    )
    return out[0].transpose(0, 1), lse[0]


def _cpu_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        *map(_heads_first, (grad, q, k, v, out)), lse[None], 0.0, causal, attn_mask=None, scale=scale
    )
    dq, dk, dv = (g[0].transpose(0, 1) for g in grads)
    return dq, dk, dv


class _Packed:
    """Pairs as the CUDA kernels take them: tokens one after the other, and where each sequence begins.

    Memory: nothing where the pairs are all tokens in their order; else a copy of what they select.
    """

    def __init__(self, q: Tensor, k: Tensor, pairs: list[Pair]) -> None:
        self.pairs = pairs
        self.q_lengths, self.kv_lengths = (
            [part.stop - part.start for part in side] for side in zip(*pairs, strict=True)
        )
        self.q_starts, self.kv_starts = (
            torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(q.device, non_blocking=True)
            for lengths in (self.q_lengths, self.kv_lengths)
        )
        self.max_q, self.max_kv = max(self.q_lengths), max(self.kv_lengths)
        self._all_q, self._all_kv = sum(self.q_lengths) == q.shape[0], sum(self.kv_lengths) == k.shape[0]

    def q(self, x: Tensor) -> Tensor:
        """The selected tokens of queries, or of what lies beside them."""
        return x if self._all_q else torch.cat([x[part] for part, _ in self.pairs])

    def kv(self, x: Tensor) -> Tensor:
        """The selected tokens of keys or values."""
        return x if self._all_kv else torch.cat([x[part] for _, part in self.pairs])

    def queries(self, out: Tensor, lse: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """What the kernel made of the selected queries, put where they are."""
        if self._all_q:
            yield slice(0, out.shape[0]), out, lse
            return
        for (q_slice, _), part in zip(self.pairs, slices(self.q_lengths), strict=True):
            yield q_slice, out[part], lse[:, part]

    def both(self, dq: Tensor, dk: Tensor, dv: Tensor) -> Iterator[tuple[slice, slice, Tensor, Tensor, Tensor]]:
        """The gradients that the kernel made, put where their tokens are."""
        if self._all_q and self._all_kv:
            yield slice(0, dq.shape[0]), slice(0, dk.shape[0]), dq, dk, dv
            return
        parts = zip(self.pairs, slices(self.q_lengths), slices(self.kv_lengths), strict=True)
        for (q_slice, kv_slice), of_q, of_kv in parts:
            yield q_slice, kv_slice, dq[of_q], dk[of_kv], dv[of_kv]


def _flash_window(before: int | None) -> dict[str, int]:
    return {} if before is None else {"window_size_left": before, "window_size_right": 0}


def _flash(
    packed: _Packed, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, before: int | None
) -> tuple[Tensor, Tensor]:
    lengths = (packed.q_starts, packed.kv_starts, packed.max_q, packed.max_kv)
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        q, k, v, *lengths, 0.0, causal, False, scale=scale, **_flash_window(before)
    )
    return out, lse


def _flash_backward(
    packed: _Packed, grad: Tensor, q: Tensor, out: Tensor, k: Tensor, v: Tensor, lse: Tensor, causal: bool,
    scale: float, before: int | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    lengths = (packed.q_starts, packed.kv_starts, packed.max_q, packed.max_kv)
    state = torch.zeros(2, dtype=torch.uint64, device=q.device)  # of dropout, of which there is none
    dq, dk, dv = torch.ops.aten._flash_attention_backward(
        grad.contiguous(), q, k, v, out.contiguous(), lse.contiguous(), *lengths, 0.0, causal, state, state[:0],
        scale=scale, **_flash_window(before),
    )  # fmt: skip
    return dq, dk, dv


def _efficient(
    packed: _Packed, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, before: int | None
) -> tuple[Tensor, Tensor]:
    group = q.shape[1] // k.shape[1]
    out, lse, *_ = torch.ops.aten._efficient_attention_forward(
        q[None], *(x.repeat_interleave(group, 1)[None] for x in (k, v)), None, packed.q_starts, packed.kv_starts,
        packed.max_q, packed.max_kv, 0.0, _CAUSAL if causal else 0, True, scale=scale,
        window_size=None if before is None else before + 1,
    )  # fmt: skip
    # [sequences, heads, longest] -> [heads, tokens]
    return out[0], torch.cat([of[:, :n] for of, n in zip(lse, packed.q_lengths, strict=True)], 1)


def _efficient_backward(
    packed: _Packed, grad: Tensor, q: Tensor, out: Tensor, k: Tensor, v: Tensor, lse: Tensor, causal: bool,
    scale: float, before: int | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    group = q.shape[1] // k.shape[1]
    padded = lse.new_zeros(len(packed.pairs), lse.shape[0], -(-packed.max_q // _ALIGNED) * _ALIGNED)
    for row, part in zip(padded, slices(packed.q_lengths), strict=True):
        row[:, : part.stop - part.start] = lse[:, part]
    state = torch.zeros((), dtype=torch.int64, device=q.device)  # of dropout, of which there is none
    dq, dk, dv, _ = torch.ops.aten._efficient_attention_backward(
        grad[None], q[None], *(x.repeat_interleave(group, 1)[None] for x in (k, v)), None, out[None], packed.q_starts,
        packed.kv_starts, packed.max_q, packed.max_kv, padded, 0.0, state, state, _CAUSAL if causal else 0, False,
        scale=scale, window_size=None if before is None else before + 1,
    )  # fmt: skip
    dk, dv = (x[0].unflatten(1, (-1, group)).sum(2) for x in (dk, dv))
    return dq[0], dk, dv
