"""The fused layers against plain torch, as on a CPU and as on a GPU: values, gradients, and what backward needs."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from products_stand_in import mm_of_a_gpu

from solopo_nemo.core.layers import blockwise
from solopo_nemo.runtime import device

ALONE: Any = SimpleNamespace(size=lambda: 1)
ROWS, HIDDEN, WIDE = 3 * blockwise.BLOCK + 5, 16, 12


def leaves(dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=g, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def both(
    ours: Callable[..., torch.Tensor], plain: Callable[..., torch.Tensor], dtype: torch.dtype, *shapes: tuple[int, ...]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Output and every gradient, ours beside fp64."""
    inputs = leaves(dtype, *shapes)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    got, want = ours(*inputs), plain(*exact)
    weight = torch.randn(want.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (got.double() * weight).sum().backward()
    (want * weight).sum().backward()
    return [(got, want), *((x.grad, y.grad) for x, y in zip(inputs, exact, strict=True))]


CASES: dict[str, tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor], tuple[tuple[int, ...], ...]]] = {
    "norm_linear": (
        lambda x, gamma, weight, bias: blockwise.norm_linear(x, gamma, weight, bias, 1e-6, ALONE, False),
        lambda x, gamma, weight, bias: F.linear(F.rms_norm(x, (HIDDEN,), gamma, 1e-6), weight, bias),
        ((ROWS, 1, HIDDEN), (HIDDEN,), (WIDE, HIDDEN), (WIDE,)),
    ),
    "norm_linear without bias": (
        lambda x, gamma, weight: blockwise.norm_linear(x, gamma, weight, None, 1e-6, ALONE, False),
        lambda x, gamma, weight: F.linear(F.rms_norm(x, (HIDDEN,), gamma, 1e-6), weight),
        ((ROWS, 1, HIDDEN), (HIDDEN,), (WIDE, HIDDEN)),
    ),
    "norm": (
        lambda x, weight: blockwise.norm(x, blockwise.gamma_of(weight, True), 1e-6),
        lambda x, weight: F.rms_norm(x, (HIDDEN,), 1 + weight, 1e-6),
        ((ROWS, 2, HIDDEN), (HIDDEN,)),
    ),
    "zero-centred norm_linear": (
        lambda x, w, weight: blockwise.norm_linear(x, blockwise.gamma_of(w, True), weight, None, 1e-6, ALONE, False),
        lambda x, w, weight: F.linear(F.rms_norm(x, (HIDDEN,), 1 + w, 1e-6), weight),
        ((ROWS, 1, HIDDEN), (HIDDEN,), (WIDE, HIDDEN)),
    ),
    "GELU": (
        lambda y, weight: blockwise.gated_linear(y, weight, activation=blockwise.gelu_tanh),
        lambda y, weight: F.linear(F.gelu(y[..., :WIDE], approximate="tanh") * y[..., WIDE:], weight),
        ((ROWS, 1, 2 * WIDE), (HIDDEN, WIDE)),
    ),
    "gated_linear": (
        blockwise.gated_linear,
        lambda y, weight: F.linear(F.silu(y[..., :WIDE]) * y[..., WIDE:], weight),
        ((ROWS, 1, 2 * WIDE), (HIDDEN, WIDE)),
    ),
}


@pytest.fixture(params=["cpu", "gpu"])
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The code of this device, here, in blocks that are smaller than the rows."""
    if request.param == "gpu":
        mm, mm_of_gpu = torch.mm, mm_of_a_gpu([])
        monkeypatch.setattr(device, "cuda", lambda: True)
        monkeypatch.setattr(blockwise, "GPU_BLOCK", ROWS // 2)
        monkeypatch.setattr(torch, "mm", lambda *a, **k: (mm_of_gpu if "out_dtype" in k else mm)(*a, **k))
    return str(request.param)


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_values_and_gradients(name: str, dtype: torch.dtype, tolerance: float) -> None:
    ours, plain, shapes = CASES[name]
    for got, want in both(ours, plain, dtype, *shapes):
        assert (got.double() - want).norm() / want.norm() < tolerance


@pytest.mark.parametrize("name", CASES)
def test_the_input_alone_is_kept(name: str) -> None:
    ours, _, shapes = CASES[name]
    inputs = leaves(torch.float32, *shapes)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ours(*inputs)
    # what has one number a channel does not count
    storages = {t.untyped_storage().data_ptr() for t in kept if t.numel() > HIDDEN}
    assert storages <= {x.untyped_storage().data_ptr() for x in inputs}


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_frozen_inputs_get_no_gradient(frozen: int) -> None:
    inputs = leaves(torch.float32, (ROWS, 1, HIDDEN), (HIDDEN,), (WIDE, HIDDEN))
    inputs[frozen].requires_grad_(False)
    blockwise.norm_linear(*inputs, None, 1e-6, ALONE, False).sum().backward()
    assert [x.grad is None for x in inputs] == [i == frozen for i in range(3)]
