"""Matrix products whose sums stay in fp32: on a GPU from 16-bit factors, which its tensor cores multiply.

On a GPU ``torch.mm(out_dtype=torch.float32)`` sums and returns in fp32 what it multiplies in bf16. A CPU has no such
product: it converts the factors first.
"""

from __future__ import annotations

import torch

from solopo_nemo.runtime import device


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``a @ b`` in the type of ``b``, which may be wider than that of ``a``; on a GPU in fp32."""
    return torch.mm(a, b, out_dtype=torch.float32) if device.cuda() else a.to(b.dtype) @ b


def add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """Add ``a @ b`` to a total of fp32 or wider; sums of many bf16 tiles would lose the small ones.

    Args:
        total: ``[m, n]``.
        a: ``[m, k]``; on a GPU it is rounded to the type of ``b``, if that is narrower.
        b: ``[k, n]``.
    """
    if device.cuda():  # not addmm with out_dtype: torch 2.8 takes no fp32 total there beside bf16 factors
        total += product(a.to(b.dtype), b)
    else:
        total.addmm_(a.to(total.dtype), b.to(total.dtype))
