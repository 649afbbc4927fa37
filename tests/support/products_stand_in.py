"""``torch.mm`` as a GPU has it, on a CPU."""

from __future__ import annotations

from typing import Any

import torch


def mm_of_a_gpu(calls: list[torch.dtype]) -> Any:
    """``torch.mm`` with ``out_dtype`` and its conditions (aten/src/ATen/native/cuda/Blas.cpp, _mm_dtype_out_cuda)."""

    def mm(
        a: torch.Tensor, b: torch.Tensor, *, out_dtype: torch.dtype, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        assert a.dtype == b.dtype
        assert out_dtype in (a.dtype, torch.float32)
        assert out is None or (out.dtype == out_dtype and out.shape == (a.shape[0], b.shape[1]))
        calls.append(a.dtype)
        product = (a.double() @ b.double()).to(out_dtype)
        return product if out is None else out.copy_(product)

    return mm
