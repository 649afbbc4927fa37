"""Attention over packed sequences, forward and backward: the one place that calls a kernel of torch.

``q``, ``k``, ``v`` are ``[tokens, heads, dim]``, K/V perhaps with fewer heads. Two :class:`Sequences` say which queries
see which keys: a whole sequence sees itself, and the later steps of a ring see halves of others.

==========  ==========================================  =====================================================
device      type                                        kernel
==========  ==========================================  =====================================================
CPU         any                                         flash, one call a sequence, on views
CUDA        fp16, bf16                                  variable-length flash, one call for all sequences
CUDA        fp32                                        variable-length memory-efficient, one call for all sequences
==========  ==========================================  =====================================================

The CUDA kernels are torch's own builds of flash-attn 2 and of xformers, under names that are the same from torch 2.9
to 2.13. torch's public function for packed input (``torch.nn.attention.varlen``) exists from 2.10 on, and its signature
changes with each version. flash-attn's own package has the same kernels. The CUDA kernels have not run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

import torch

from solopo_nemo.runtime import device

Tensor = torch.Tensor
_CAUSAL = 1
"""``custom_mask_type`` of the memory-efficient kernel: causal from the top left (sdp_utils.h of torch)."""
_ALIGNED = 32
"""The memory-efficient kernel pads the log-sum-exp to a multiple of it (kernel_forward.h: kAlignLSE)."""


def slices(lengths: list[int]) -> list[slice]:
    """Where sequences of these lengths lie, packed."""
    ends = list(accumulate(lengths))
    return [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]


class Sequences:
    """Packed sequences, or one half of each: made once a micro-batch, so that no layer asks a GPU for a number.

    Args:
        lengths: of the whole sequences, Python numbers.
        starts: int32 ``[sequences + 1]``, their boundaries, on the device of the kernels.
        half: 0 for the first half of each, 1 for the second; None for the whole.

    Attributes:
        parts: where each lies among the tokens.
        starts: boundaries of the selected tokens, one sequence after the other.
        longest: the most tokens of one.
        all: every token is selected.
    """

    def __init__(self, lengths: list[int], starts: Tensor, half: int | None = None) -> None:
        self.parts, self.starts, self.longest, self.all = slices(lengths), starts, max(lengths), half is None
        if half is not None:
            middles = [(part.start + part.stop) // 2 for part in self.parts]
            self.parts = [
                slice(middle, part.stop) if half else slice(part.start, middle)
                for part, middle in zip(self.parts, middles, strict=True)
            ]
            self.starts, self.longest = starts // 2, self.longest // 2

    def select(self, x: Tensor) -> Tensor:
        """The selected tokens. Memory: a copy of them, unless they are all."""
        return x if self.all else torch.cat([x[part] for part in self.parts])

    def selected(self) -> list[slice]:
        """Where each sequence lies among the selected tokens."""
        return slices([part.stop - part.start for part in self.parts])


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    queries: Sequences,
    keys: Sequences,
    causal: bool,
    scale: float,
    before: int | None = None,
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Attention of each sequence of ``queries`` to the same one of ``keys``.

    Args:
        q, k, v: ``[tokens, heads, dim]``.
        queries, keys: which tokens.
        causal: a query sees keys up to its own place; queries and keys are then the same tokens.
        scale: of the scores.
        before: with ``causal``, how many tokens before its own a query sees; ``None`` for all. CUDA only.

    Yields:
        A slice of the queries, its output ``[tokens, heads, dim]`` and log-sum-exp, fp32 ``[heads, tokens]``.
    """
    if not device.cuda():
        for q_slice, kv_slice in zip(queries.parts, keys.parts, strict=True):
            yield q_slice, *_cpu(q[q_slice], k[kv_slice], v[kv_slice], causal, scale)
        return
    kernel = _efficient if q.dtype == torch.float32 else _flash
    given = (queries.select(q), keys.select(k), keys.select(v))
    out, lse = kernel(queries, keys, *given, causal, scale, before)
    if queries.all:
        yield slice(0, out.shape[0]), out, lse
        return
    for q_slice, part in zip(queries.parts, queries.selected(), strict=True):
        yield q_slice, out[part], lse[:, part]


def attend_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    queries: Sequences,
    keys: Sequences,
    causal: bool,
    scale: float,
    before: int | None = None,
) -> Iterator[tuple[slice, slice, Tensor, Tensor, Tensor]]:
    """Gradients of :func:`attend`.

    ``out`` and ``lse`` may be those over more keys than ``keys``; the gradients are then these keys' summand.

    Yields:
        Slices of the queries and of the keys, and the gradients of q, k and v there.
    """
    if not device.cuda():
        for q_slice, kv_slice in zip(queries.parts, keys.parts, strict=True):
            given = (grad[q_slice], q[q_slice], k[kv_slice], v[kv_slice], out[q_slice], lse[:, q_slice])
            yield q_slice, kv_slice, *_cpu_backward(*given, causal, scale)
        return
    kernel = _efficient_backward if q.dtype == torch.float32 else _flash_backward
    grad, q, out, lse = (*map(queries.select, (grad, q, out)), queries.select(lse.t()).t())
    dq, dk, dv = kernel(queries, keys, grad, q, out, keys.select(k), keys.select(v), lse, causal, scale, before)
    if queries.all and keys.all:
        yield slice(0, dq.shape[0]), slice(0, dk.shape[0]), dq, dk, dv
        return
    parts = zip(queries.parts, keys.parts, queries.selected(), keys.selected(), strict=True)
    for q_slice, kv_slice, of_q, of_kv in parts:
        yield q_slice, kv_slice, dq[of_q], dk[of_kv], dv[of_kv]


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


def _lengths(queries: Sequences, keys: Sequences) -> tuple[Tensor, Tensor, int, int]:
    return queries.starts, keys.starts, queries.longest, keys.longest


def _flash_window(before: int | None) -> dict[str, int]:
    return {} if before is None else {"window_size_left": before, "window_size_right": 0}


def _flash(
    queries: Sequences, keys: Sequences, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, before: int | None
) -> tuple[Tensor, Tensor]:
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        q, k, v, *_lengths(queries, keys), 0.0, causal, False, scale=scale, **_flash_window(before)
    )
    return out, lse


def _flash_backward(
    queries: Sequences, keys: Sequences, grad: Tensor, q: Tensor, out: Tensor, k: Tensor, v: Tensor, lse: Tensor,
    causal: bool, scale: float, before: int | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    state = torch.zeros(2, dtype=torch.uint64, device=q.device)  # of dropout, of which there is none
    dq, dk, dv = torch.ops.aten._flash_attention_backward(
        grad.contiguous(), q, k, v, out.contiguous(), lse.contiguous(), *_lengths(queries, keys), 0.0, causal,
        state, state[:0], scale=scale, **_flash_window(before),
    )  # fmt: skip
    return dq, dk, dv


def _efficient(
    queries: Sequences, keys: Sequences, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, before: int | None
) -> tuple[Tensor, Tensor]:
    group = q.shape[1] // k.shape[1]
    out, lse, *_ = torch.ops.aten._efficient_attention_forward(
        q[None], *(x.repeat_interleave(group, 1)[None] for x in (k, v)), None,
        *_lengths(queries, keys), 0.0, _CAUSAL if causal else 0, True, scale=scale,
        window_size=None if before is None else before + 1,
    )  # fmt: skip
    # [sequences, heads, longest] -> [heads, tokens]
    return out[0], torch.cat([of[:, : part.stop - part.start] for of, part in zip(lse, queries.parts, strict=True)], 1)


def _efficient_backward(
    queries: Sequences, keys: Sequences, grad: Tensor, q: Tensor, out: Tensor, k: Tensor, v: Tensor, lse: Tensor,
    causal: bool, scale: float, before: int | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    group = q.shape[1] // k.shape[1]
    padded = lse.new_zeros(len(queries.parts), lse.shape[0], -(-queries.longest // _ALIGNED) * _ALIGNED)
    for row, part in zip(padded, queries.selected(), strict=True):
        row[:, : part.stop - part.start] = lse[:, part]
    state = torch.zeros((), dtype=torch.int64, device=q.device)  # of dropout, of which there is none
    # the kernel takes no stride between the rows of out (kernel_backward.h: o_strideM)
    dq, dk, dv, _ = torch.ops.aten._efficient_attention_backward(
        grad[None], q[None], *(x.repeat_interleave(group, 1)[None] for x in (k, v)), None, out.contiguous()[None],
        *_lengths(queries, keys), padded, 0.0, state, state, _CAUSAL if causal else 0, False,
        scale=scale, window_size=None if before is None else before + 1,
    )  # fmt: skip
    dk, dv = (x[0].unflatten(1, (-1, group)).sum(2) for x in (dk, dv))
    return dq[0], dk, dv
