"""Numerically stable functions: upcasting, ``log(1 - exp(a))`` and log-odds."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def upcast(values: Tensor) -> Tensor:
    """Converts bf16 and fp16 tensors to fp32, and returns fp32 and fp64 tensors unchanged."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def log1mexp(a: Tensor) -> Tensor:
    """Computes ``log(1 - exp(a))`` for ``a <= 0``, finite in value and in gradient for every finite ``a``.

    The formula is ``log(-expm1(a))`` above ``-ln 2`` and ``log1p(-exp(a))`` below ("the specification", section 2,
    Numerics). ``a`` is clamped to ``-eps`` of its dtype. At ``a = 0`` the value is ``log(eps)`` and the gradient is 0.

    Args:
        a: Log-probabilities in nats, any shape, fp32 or fp64.

    Returns:
        A tensor of the same shape and dtype, at most 0.
    """
    a = a.clamp(max=-torch.finfo(a.dtype).eps)
    switch = -math.log(2.0)
    # Clamp the input of each branch: an inf in the branch that `where` discards would make the gradient NaN.
    near_zero = torch.log(-torch.expm1(a.clamp(min=switch)))
    far = torch.log1p(-torch.exp(a.clamp(max=switch)))
    return torch.where(a > switch, near_zero, far)


def log_odds(average: Tensor) -> Tensor:
    """Computes ``log(p / (1 - p))`` for ``p = exp(average)``.

    Args:
        average: Mean log-probability per response token in nats, any shape, fp32 or fp64, at most 0.

    Returns:
        The log-odds, same shape and dtype.
    """
    return average - log1mexp(average)
