"""Operations and workspace of torch's attention kernels, by the name of the operation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

_PACKED = ("_flash_attention_forward", "_efficient_attention_forward")
_ON_A_CPU = "_scaled_dot_product_flash_attention_for_cpu"


def is_one(name: str) -> bool:
    """Whether an operation is attention, forward or backward."""
    base = name.removesuffix("_backward")
    forward = base if base.endswith("forward") or base == _ON_A_CPU else f"{base}_forward"
    return forward in (*_PACKED, _ON_A_CPU)


def operations(name: str, args: Any, kwargs: Any, lengths: Sequence[int]) -> float:
    """Operations of attention: 4 for each query, key and channel in forward, 10 in backward; half of it if causal.

    Args:
        name: of the operation.
        args, kwargs: its arguments; a window leaves out the keys before it.
        lengths: of the packed sequences; a rank has the same share of each.
    """
    backward = name.endswith("backward")
    operands = [x for x in args if isinstance(x, torch.Tensor)]
    q, k = operands[1:3] if backward else operands[:2]
    if name.startswith(_ON_A_CPU):  # [1, heads, tokens, dim]
        heads, tokens, dim = q.shape[1:]
        pairs = float(tokens) * k.shape[2]
    else:
        tokens, heads, dim = q.shape[-3:]
        before, own = kwargs.get("window_size_left"), kwargs.get("window_size")
        window = before + 1 if before is not None else own if own is not None else sum(lengths)
        pairs = sum(n * n - max(n - window, 0) ** 2 for n in lengths)
        pairs *= (tokens / sum(lengths)) * (k.shape[-3] / sum(lengths))
    # flash: is_causal, and its other flags are false; memory-efficient: custom_mask_type, 0 without a mask
    causal = any(x is True or (type(x) is int and x == 1) for x in args)
    return pairs * heads * dim * (10 if backward else 4) * (0.5 if causal else 1.0)


def workspace(q: torch.Tensor, k: torch.Tensor) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """What flash attention's backward makes beside its results, for packed ``[tokens, heads, dim]``.

    Its fake implementation does not say: the gradient of the queries and a sum of each in fp32, and the gradients of
    grouped keys and values for each query head (mha_varlen_bwd in flash_api.cpp).
    """
    found = [(tuple(q.shape), torch.float32), (tuple(q.shape[:2]), torch.float32)]
    grouped = q.shape[1] != k.shape[1]
    return found + 2 * [((k.shape[0], q.shape[1], q.shape[2]), q.dtype)] * grouped
