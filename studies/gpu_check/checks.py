"""Correctness: each kernel and a whole training step beside the same computation in fp64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F

from solopo_nemo.core.head import vocab_parallel_logprob
from solopo_nemo.core.layers import attention, blockwise, experts
from solopo_nemo.core.layers.packed_kernels import Sequences, attend, attend_backward, slices
from solopo_nemo.objectives import SEQUENCES, SequenceScores
from solopo_nemo.runtime import device
from studies.gpu_check import plain
from studies.gpu_check.megatron import BASE, SHAPES, Training, sample

Tensor = torch.Tensor
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LIMITS = {"fp32": 2e-4, "bf16": 3e-2}
"""Largest norm of a difference, as a part of the norm of what fp64 gives; bf16 keeps 8 bits."""
LENGTHS, SCALE, DIM = [192, 64, 320], 0.125, 64
ALONE: Any = SimpleNamespace(size=lambda: 1)
ROUTED = [200, 0, 37, 275]
"""Tokens of each expert."""


def _differences(ours: Callable[..., Tensor], exact: Callable[..., Tensor], dtype: torch.dtype, *shapes: Any) -> float:
    """Largest relative difference of the result and every gradient."""
    torch.manual_seed(0)
    given = [torch.randn(*shape).to(device.current(), dtype).requires_grad_() for shape in shapes]
    doubles = [x.detach().double().requires_grad_() for x in given]
    got, want = ours(*given), exact(*doubles)
    weight = torch.randn(want.shape).to(want)
    gradients = torch.autograd.grad((got.double() * weight).sum(), given)
    return _largest([got, *gradients], [want, *torch.autograd.grad((want * weight).sum(), doubles)])


def _largest(got: Sequence[Tensor], want: Sequence[Tensor]) -> float:
    return max(float((a.double() - b).norm() / b.norm()) for a, b in zip(got, want, strict=True))


def _packed(cp: int = 1) -> attention.PackedSequences:
    starts = torch.tensor([0, *LENGTHS], device=device.current()).cumsum(0).int()
    return attention.PackedSequences.of(LENGTHS, starts, cp)


def _attention(dtype: torch.dtype, before: int | None = None) -> float:
    def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.cat([plain.attention(q[part], k[part], v[part], SCALE, before) for part in slices(LENGTHS)])

    def ours(*given: Tensor) -> Tensor:
        return attention._PackedAttention.apply(*given, _packed().whole, SCALE, before)

    total = sum(LENGTHS)
    return _differences(ours, exact, dtype, (total, 8, DIM), (total, 2, DIM), (total, 2, DIM))


class _Ring(torch.autograd.Function):
    """The arithmetic of a ring of two ranks in one process: what a rank would receive is taken from where it lies."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        chunks = [torch.arange(part.start, part.stop, device=q.device).chunk(4) for part in slices(LENGTHS)]
        ctx.places = [torch.cat([torch.cat((of[rank], of[3 - rank])) for of in chunks]) for rank in range(2)]
        out, lse = torch.empty_like(q), q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)
        for rank, own in enumerate(ctx.places):
            o, total = torch.empty_like(q[own]), lse[:, own]
            for step in range(2):
                there, (queries, keys) = ctx.places[rank - step], _Ring.seen(rank, (rank - step) % 2)
                given = (q[own], k[there], v[there], queries, keys, not step, SCALE)
                for part, more, more_lse in attend(*given):
                    if step:
                        attention._merge(o[part], total[:, part], more, more_lse)
                    else:
                        o[part], total[:, part] = more, more_lse
            out[own], lse[:, own] = o, total
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    def seen(rank: int, source: int) -> tuple[Sequences, Sequences]:
        ring = object.__new__(attention._Ring)
        ring.size, ring.rank = 2, rank
        return ring.seen(source, _packed(2).shares)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        q, k, v, out, lse = ctx.saved_tensors
        found = [torch.zeros_like(x) for x in (q, k, v)]
        for rank, own in enumerate(ctx.places):
            for source, there in enumerate(ctx.places):
                given = (grad[own], q[own], k[there], v[there], out[own], lse[:, own])
                queries, keys = _Ring.seen(rank, source)
                for q_part, kv_part, *parts in attend_backward(*given, queries, keys, rank == source, SCALE):
                    for total, place, part in zip(found, (own[q_part], *[there[kv_part]] * 2), parts, strict=True):
                        total[place] += part
        return tuple(found)


ring: Callable[..., Tensor] = _Ring.apply
"""Attention of packed sequences, ``q, k, v`` ``[T, heads, dim]``, by the arithmetic of a ring of two ranks."""


def _ring_attention(dtype: torch.dtype) -> float:
    def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.cat([plain.attention(q[part], k[part], v[part], SCALE) for part in slices(LENGTHS)])

    total = sum(LENGTHS)
    return _differences(ring, exact, dtype, (total, 8, DIM), (total, 2, DIM), (total, 2, DIM))


def _norm_linear(dtype: torch.dtype) -> float:
    return _differences(
        lambda x, g, w, b: blockwise.norm_linear(x, g, w, b, 1e-6, ALONE, False),
        lambda x, g, w, b: F.linear(F.rms_norm(x, g.shape, g, 1e-6), w, b),
        dtype, (1100, 1, 128), (128,), (96, 128), (96,),
    )  # fmt: skip


def _gated_linear(dtype: torch.dtype) -> float:
    def exact(y: Tensor, w: Tensor) -> Tensor:
        gate, value = y.chunk(2, -1)
        return F.linear(F.silu(gate) * value, w)

    return _differences(blockwise.gated_linear, exact, dtype, (1100, 1, 256), (96, 128))


def _experts(dtype: torch.dtype) -> float:
    """A layer's experts as in training all weights, and the grouped product alone as in training adapters."""

    def exact(x: Tensor, w1: Tensor, w2: Tensor, probs: Tensor) -> Tensor:
        out = []
        for part, first, second in zip(slices(ROUTED), w1, w2, strict=True):
            gate, value = F.linear(x[part], first).chunk(2, -1)
            out.append(F.linear(F.silu(gate) * value * probs[part, None], second))
        return torch.cat(out)

    total, count = sum(ROUTED), len(ROUTED)
    layer = _differences(
        lambda *given: experts._GroupedSwiGLU.apply(*given, ROUTED),
        exact, dtype, (total, 64), (count, 256, 64), (count, 64, 128), (total,),
    )  # fmt: skip
    product = _differences(
        lambda x, w: experts.grouped_linear(x, w, ROUTED),
        lambda x, w: torch.cat([F.linear(x[part], own) for part, own in zip(slices(ROUTED), w, strict=True)]),
        dtype, (total, 64), (count, 96, 64),
    )  # fmt: skip
    return max(layer, product)


def _head(dtype: torch.dtype) -> float:
    labels = torch.arange(300, device=device.current()) * 7
    return _differences(
        lambda rows, w: vocab_parallel_logprob(rows, w, labels, None, 128),
        lambda rows, w: (rows @ w.t()).log_softmax(-1).gather(1, labels[:, None])[:, 0],
        dtype, (300, 64), (5000, 64),
    )  # fmt: skip


def _training_step(dtype: torch.dtype, layers: str) -> float:
    """Loss and gradients of a SoLo-DPO micro-batch, every parameter's; then an optimizer step."""
    training, shape = Training(SHAPES["tiny"], dtype, layers=layers), SHAPES["tiny"]
    samples = [sample(shape, i, 40 + i, 300 + 7 * i, 12) for i in range(2)]
    loss = training.backward(samples)
    weights = {name: p.detach().double().requires_grad_() for name, p in training.core.named_parameters()}
    policy = {}
    for name in training.objective.sequences:
        prompt, answer = f"prompt_{SEQUENCES[name].prompt}", name.split("_")[1]
        sums = [plain.response_logp(weights, shape.heads, shape.kv, BASE, row[prompt], row[answer]) for row in samples]
        policy[name] = SequenceScores(torch.stack(sums), torch.tensor([12, 12], device=device.current()))
    reference = {name: torch.full_like(sums[0], -1.0).expand(2) for name in training.objective.reference_sequences}
    want = training.objective(policy, reference).loss
    want.backward()
    got = [p.main_grad for p in training.core.parameters()]
    worst = max(abs(loss / float(want) - 1), _largest(got, [w.grad for w in weights.values()]))
    training.step(samples)
    after = training.backward(samples)
    if not math.isfinite(after) or after == loss:
        raise ArithmeticError(f"the loss is {loss} before the optimizer's step and {after} after it")
    return worst


CHECKS: dict[str, Callable[[torch.dtype], float]] = {
    "packed attention": _attention,
    "sliding window": lambda dtype: _attention(dtype, 50),
    "ring attention": _ring_attention,
    "norm and linear": _norm_linear,
    "SwiGLU and linear": _gated_linear,
    "grouped experts": _experts,
    "response-only head": _head,
    "training step, torch's layers": lambda dtype: _training_step(dtype, "torch"),
    "training step, auto's layers": lambda dtype: _training_step(dtype, "auto"),
}


def check(name: str, precision: str) -> dict[str, Any]:
    """One row: the largest relative difference to fp64, and whether it is within the limit."""
    difference = CHECKS[name](DTYPES[precision])
    return {"ok": difference < LIMITS[precision], "difference": difference}
