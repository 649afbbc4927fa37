"""Sums of weight gradients, which a backward pass adds to Megatron's fp32 buffer itself."""

from __future__ import annotations

from typing import Any

import torch

from solopo_nemo.runtime import device


def new_sum(weight: torch.Tensor) -> torch.Tensor:
    """Zeros of the weight's shape, at least in fp32."""
    return torch.zeros(weight.shape, dtype=torch.promote_types(weight.dtype, torch.float32), device=weight.device)


def gradient_sum(weight: torch.Tensor) -> torch.Tensor:
    """The tensor that sums the weight's gradient: Megatron's fp32 buffer, or a new one."""
    main_grad = getattr(weight, "main_grad", None)
    return main_grad if main_grad is not None and main_grad.dtype == torch.float32 else new_sum(weight)


def gradient_for_autograd(weight: Any, total: torch.Tensor | None) -> torch.Tensor | None:
    """The gradient that backward returns to autograd for a sum of :func:`gradient_sum`.

    A sum outside Megatron's buffer is returned in the weight's dtype. For a sum in Megatron's buffer, a GPU gets a
    placeholder that only triggers the hook of the overlapped reduction, as in Megatron-core's
    ``LinearWithGradAccumulationAndAsyncCommunication`` (tensor_parallel/layers.py:570-605). A CPU gets None, because
    gradients are reduced after backward there.
    """
    if total is None or total is not getattr(weight, "main_grad", None):
        return None if total is None else total.to(weight.dtype)
    if not device.cuda():
        return None
    weight.grad_added_to_main_grad = True
    zero = getattr(weight, "zero_out_wgrad", False)
    try:  # one cached tensor for all weights of a shape, which Megatron's own layers use too
        from transformer_engine.pytorch.module.base import get_dummy_wgrad
    except ImportError:
        return torch.zeros_like(weight) if zero else torch.empty_like(weight)
    return get_dummy_wgrad(list(weight.shape), weight.dtype, zero=zero)
