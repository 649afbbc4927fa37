"""Matrix products with fp32 accumulation and an fp32 result.

On a GPU ``torch.mm(out_dtype=torch.float32)`` multiplies bf16 factors on tensor cores and returns the fp32 sums. A CPU
has no such product: there the factors are converted first.
"""

from __future__ import annotations

import torch

from solopo_nemo.runtime import device


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``a @ b`` for ``a`` ``[m, k]`` and ``b`` ``[k, n]``.

    Args:
        a: factor, converted to the dtype of ``b`` on a CPU.
        b: factor; on a GPU it has the dtype of ``a``.

    Returns:
        ``[m, n]``, fp32 on a GPU and in the dtype of ``b`` on a CPU.
    """
    return torch.mm(a, b, out_dtype=torch.float32) if device.cuda() else a.to(b.dtype) @ b


def add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """Adds ``a @ b`` to ``total`` in place. A bf16 total would lose small terms of a sum over many tiles.

    Args:
        total: ``[m, n]``, fp32 or fp64.
        a: ``[m, k]``; on a GPU it is rounded to the dtype of ``b``.
        b: ``[k, n]``.
    """
    if device.cuda():  # not addmm with out_dtype: torch 2.8 takes no fp32 total there beside bf16 factors
        total += product(a.to(b.dtype), b)
    else:
        total.addmm_(a.to(total.dtype), b.to(total.dtype))
