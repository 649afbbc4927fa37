"""The CUDA side of core attention, on a CPU: torch's kernels are replaced by plain attention with their conventions.

The conventions are those of torch's sources (flash_api.cpp, attention.cu, attention_backward.cu): packed input with
int32 starts; a log-sum-exp ``[heads, T]`` of the flash kernel; ``[sequences, heads, longest]`` of the memory-efficient
one, padded to a multiple of 32, whose window counts the query's own token and which takes no grouped heads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from solopo_nemo.core.layers import attention
from solopo_nemo.core.layers import packed_kernels as kernels
from solopo_nemo.runtime import device
from studies.gpu_check import checks

Tensor = torch.Tensor
HEADS, DIM, SCALE = 4, 16, 0.3
LENGTHS = [24, 8, 40]


def scores(q: Tensor, k: Tensor, causal: bool, scale: float, before: int | None) -> Tensor:
    """``[heads, queries, keys]``, what is not seen at minus infinity."""
    found = scale * torch.einsum("qhd,khd->hqk", q, k)
    behind = torch.arange(q.shape[0])[:, None] - torch.arange(k.shape[0])
    unseen = torch.zeros_like(behind, dtype=torch.bool)
    if causal:
        unseen |= behind < 0
    if before is not None:
        unseen |= behind > before
    return found.masked_fill(unseen, -torch.inf)


def plain(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, before: int | None) -> tuple[Tensor, Tensor]:
    group = q.shape[1] // k.shape[1]
    found = scores(q, k.repeat_interleave(group, 1), causal, scale, before)
    return torch.einsum("hqk,khd->qhd", found.softmax(-1), v.repeat_interleave(group, 1)), found.logsumexp(-1)


def plain_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float,
    before: int | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    group = q.shape[1] // k.shape[1]
    wide_k, wide_v = (x.repeat_interleave(group, 1) for x in (k, v))
    share = (scores(q, wide_k, causal, scale, before) - lse[..., None]).exp()
    d_share = torch.einsum("qhd,khd->hqk", grad, wide_v) - (grad * out).sum(-1).t()[..., None]
    d_scores = scale * share * d_share
    dk = torch.einsum("hqk,qhd->khd", d_scores, q).unflatten(1, (-1, group)).sum(2)
    dv = torch.einsum("hqk,qhd->khd", share, grad).unflatten(1, (-1, group)).sum(2)
    return torch.einsum("hqk,khd->qhd", d_scores, wide_k), dk, dv


class Kernels:
    """torch's two packed kernels, forward and backward; counts the calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def _each(self, starts_q: Tensor, starts_k: Tensor, longest_q: int, longest_k: int) -> list[tuple[slice, slice]]:
        assert starts_q.dtype == starts_k.dtype == torch.int32
        for starts, longest in ((starts_q, longest_q), (starts_k, longest_k)):
            assert int(starts.diff().max()) == longest
        ends = zip(starts_q.tolist(), starts_q.tolist()[1:], starts_k.tolist(), starts_k.tolist()[1:], strict=False)
        return [(slice(a, b), slice(c, d)) for a, b, c, d in ends]

    def flash(
        self, q: Tensor, k: Tensor, v: Tensor, *lengths: Any, scale: float, window_size_left: int = -1,
        window_size_right: int = -1,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        self.calls.append("flash")
        *lengths, dropout, causal, debug = lengths
        before, causal = self._window(q, dropout, causal, window_size_left, window_size_right)
        assert not debug
        parts = [plain(q[a], k[b], v[b], causal, scale, before) for a, b in self._each(*lengths)]
        out, lse = (torch.cat([part[i] for part in parts], i) for i in (0, 1))
        return out, lse.float(), torch.empty(2), torch.empty(0), torch.empty(0)

    def flash_backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *lengths: Any, scale: float,
        window_size_left: int = -1, window_size_right: int = -1,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        self.calls.append("flash backward")
        *lengths, dropout, causal, state, _ = lengths
        before, causal = self._window(q, dropout, causal, window_size_left, window_size_right)
        assert (state.shape, state.dtype) == ((2,), torch.uint64)
        assert (lse.shape, lse.dtype) == ((q.shape[1], q.shape[0]), torch.float32)
        assert lse.is_contiguous()
        parts = [
            plain_backward(grad[a], q[a], k[b], v[b], out[a], lse[:, a], causal, scale, before)
            for a, b in self._each(*lengths)
        ]
        return tuple(torch.cat([part[i] for part in parts]) for i in range(3))

    @staticmethod
    def _window(q: Tensor, dropout: float, causal: bool, left: int, right: int) -> tuple[int | None, bool]:
        assert dropout == 0.0
        assert q.dtype in (torch.float16, torch.bfloat16, torch.float64)  # float64 stands for them, to be exact
        assert right == (-1 if left == -1 else 0)
        return (None if left == -1 else left), causal or right == 0

    def efficient(
        self, q: Tensor, k: Tensor, v: Tensor, bias: None, *lengths: Any, scale: float, window_size: int | None
    ) -> tuple[Tensor, ...]:
        self.calls.append("efficient")
        *lengths, dropout, mask, with_lse = lengths
        assert (dropout, bias, with_lse) == (0.0, None, True)
        assert q.shape == k.shape[:1] + q.shape[1:2] + k.shape[2:], "a batch of one, heads not grouped"
        before = None if window_size is None else window_size - 1
        pairs = self._each(*lengths)
        parts = [plain(q[0, a], k[0, b], v[0, b], mask == 1, scale, before) for a, b in pairs]
        padded = q.new_full((len(pairs), q.shape[2], -(-lengths[2] // 32) * 32), torch.inf, dtype=torch.float32)
        for row, (_, lse) in zip(padded, parts, strict=True):
            row[:, : lse.shape[1]] = lse
        return torch.cat([out for out, _ in parts])[None], padded, torch.empty(()), torch.empty(()), 0, 0

    def efficient_backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: None, out: Tensor, starts_q: Tensor,
        starts_k: Tensor, longest_q: int, longest_k: int, lse: Tensor, dropout: float, seed: Tensor, offset: Tensor,
        mask: int, bias_gradient: bool, *, scale: float, window_size: int | None,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        self.calls.append("efficient backward")
        assert (dropout, bias, bias_gradient) == (0.0, None, False)
        assert lse.shape[2] % 32 == 0
        assert out.is_contiguous()
        before = None if window_size is None else window_size - 1
        pairs = self._each(starts_q, starts_k, longest_q, longest_k)
        parts = []
        for row, (a, b) in zip(lse, pairs, strict=True):
            given = (x[0, part] for x, part in ((grad, a), (q, a), (k, b), (v, b), (out, a)))
            parts.append(plain_backward(*given, row[:, : a.stop - a.start], mask == 1, scale, before))  # type: ignore[misc]
        return *(torch.cat([part[i] for part in parts])[None] for i in range(3)), None


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Kernels:
    """Decisions as on a GPU, and stand-ins for its kernels."""
    found = Kernels()
    monkeypatch.setattr(device, "cuda", lambda: True)
    for name, method in {
        "_flash_attention_forward": found.flash,
        "_flash_attention_backward": found.flash_backward,
        "_efficient_attention_forward": found.efficient,
        "_efficient_attention_backward": found.efficient_backward,
    }.items():
        monkeypatch.setattr(torch.ops.aten, name, method)
    return found


def packed(cp: int = 1) -> attention.PackedSequences:
    starts = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    return attention.PackedSequences.of(LENGTHS, starts, cp)


def tensors(dtype: torch.dtype, heads: int = HEADS, kv_heads: int = 2) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(sum(LENGTHS), h, DIM, dtype=dtype, requires_grad=True) for h in (heads, kv_heads, kv_heads)]


def differences(found: Callable[..., Tensor], given: list[Tensor], before: int | None) -> list[float]:
    """Largest differences of output and gradients to plain attention over each whole sequence."""
    parts = kernels.slices(LENGTHS)
    want = torch.cat([plain(*(x[part] for x in given), True, SCALE, before)[0] for part in parts])
    got = found(*given)
    torch.manual_seed(1)
    grad = torch.randn_like(want)
    gradients = zip(
        torch.autograd.grad(got, given, grad), torch.autograd.grad(want, given, grad.to(want.dtype)), strict=True
    )
    return [float((a - b).detach().abs().max()) for a, b in ((got, want), *gradients)]


KINDS = [(torch.float64, "flash", 1e-6), (torch.float32, "efficient", 1e-5)]
"""float64 stands for bf16, so that the comparison is exact but for the log-sum-exp, which is fp32."""


@pytest.mark.parametrize("before", [None, 7])
@pytest.mark.parametrize(("dtype", "kernel", "most"), KINDS)
def test_packed_sequences_in_one_call(
    cuda: Kernels, dtype: torch.dtype, kernel: str, most: float, before: int | None
) -> None:
    def found(*given: Tensor) -> Tensor:
        return attention._PackedAttention.apply(*given, packed().whole, SCALE, before)

    assert max(differences(found, tensors(dtype), before)) < most
    assert cuda.calls == [kernel, f"{kernel} backward"]


@pytest.mark.parametrize(("dtype", "kernel", "most"), KINDS)
def test_a_ring_over_the_packed_kernels(
    cuda: Kernels, dtype: torch.dtype, kernel: str, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "LENGTHS", LENGTHS)
    monkeypatch.setattr(checks, "SCALE", SCALE)
    assert max(differences(checks.ring, tensors(dtype), None)) < 10 * most
    assert set(cuda.calls) == {kernel, f"{kernel} backward"}
    assert len(cuda.calls) == 8, "one call a rank and step, not one a sequence"


@pytest.mark.parametrize(("dtype", "operator"), [(torch.bfloat16, "_flash"), (torch.float32, "_efficient")])
def test_torch_has_kernels_of_these_signatures(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, operator: str
) -> None:
    """The real operators, on fake tensors: torch checks the arguments and gives the shapes."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

    seen: list[str] = []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func._schema.name)
            if func is torch.ops.aten._efficient_attention_backward.default:
                return *map(torch.empty_like, args[1:4]), None  # torch 2.13's fake one lacks the argument `out`
            return func(*args, **(kwargs or {}))

    monkeypatch.setattr(device, "cuda", lambda: True)
    with FakeTensorMode(), Seen():
        q, k, v = (torch.empty(sum(LENGTHS), heads, DIM, dtype=dtype, requires_grad=True) for heads in (HEADS, 2, 2))
        out = attention._PackedAttention.apply(q, k, v, packed().whole, SCALE, None)
        out.sum().backward()
        assert out.shape == q.shape
        assert [x.grad.shape for x in (q, k, v)] == [q.shape, k.shape, v.shape]  # type: ignore[union-attr]
    for way in ("forward", "backward"):
        assert seen.count(f"aten::{operator}_attention_{way}") == 1
    assert not [name for name in seen if name.endswith("_for_cpu")]
