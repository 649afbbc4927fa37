"""Norm + linear and gated activation + linear in plain torch, as Transformer Engine fuses them.

Both process the tokens in blocks of rows, and save only their input for backward. The normalized or activated tensor in
between never exists whole: backward makes it again, block by block. No matrix product runs twice. On a CPU a block fits
the processor's cache; on a GPU it is so large that its products take long beside the start of a kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from solopo_nemo.core.gradient_sums import new_sum
from solopo_nemo.core.products import add_product
from solopo_nemo.runtime import device

BLOCK = 512
"""Rows a block on a CPU; at the widths of small models a block of the widest tensor fits the second-level cache."""
GPU_BLOCK = 16384
"""Rows a block on a GPU: the widest tensor in between takes 0.6 GiB for a 7B model on one tensor-parallel rank."""


def blocks(rows: int) -> Iterator[slice]:
    """Slices of rows that are processed one after the other."""
    size = GPU_BLOCK if device.cuda() else BLOCK
    return (slice(i, min(i + size, rows)) for i in range(0, rows, size))


Factor = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
"""Of a product with a weight: rows of the output's gradient, the weight, the sum of the weight's gradient if any."""


def _factors(ctx: Any, grads: tuple[torch.Tensor, ...], *weights: tuple[int, torch.Tensor | None]) -> list[Factor]:
    """The products of a backward pass: of each weight, with its place among the inputs, that is there."""
    there = [(place, weight) for place, weight in weights if weight is not None]
    return [
        (grad.flatten(0, -2), weight, new_sum(weight) if ctx.needs_input_grad[place] else None)
        for grad, (place, weight) in zip(grads, there, strict=True)
    ]


def _input_gradient(factors: list[Factor], part: slice, out: torch.Tensor | None = None) -> torch.Tensor:
    """Gradient of a block of the rows that all the weights multiply."""
    (grad, weight, _), *others = factors
    d = torch.mm(grad[part], weight, out=out)
    for grad, weight, _ in others:
        d.addmm_(grad[part], weight)
    return d


def _add_weight_gradients(factors: list[Factor], part: slice, rows: Callable[[], torch.Tensor]) -> None:
    """Add what a block of rows gives to each weight's gradient; the rows are made only where one is asked for."""
    if wanted := [(grad, total) for grad, _, total in factors if total is not None]:
        block = rows()
        for grad, total in wanted:
            add_product(total, grad[part].t(), block)


def _weight_gradients(factors: list[Factor]) -> list[torch.Tensor | None]:
    return [None if total is None else total.to(weight.dtype) for _, weight, total in factors] + [None]


class _NormLinear(torch.autograd.Function):
    """``rms_norm(x) * gamma @ weight.T + bias``, column-parallel.

    1. Forward: normalize a block of rows and multiply it with the weight.
    2. Backward: multiply the gradient with the weight into the buffer that becomes the gradient of ``x``; normalize the
       block again for the weight's gradient, which is summed in fp32.
    3. Backward, TP: all-reduce that buffer; SP: reduce-scatter it, so that each rank keeps its own tokens.
    4. Backward: apply the norm's gradient to the buffer in place.

    Memory: saved is ``x``, ``tokens * hidden`` of its dtype (SP: divided by TP). Besides the output, a block of
    ``BLOCK * hidden``; SP: the gathered tokens, ``tokens * hidden``, while the function runs.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        gamma: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        eps: float,
        group: dist.ProcessGroup,
        sequence_parallel: bool,
        down: torch.Tensor | None,
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        ctx.save_for_backward(x, gamma, weight, down)
        ctx.eps, ctx.group, ctx.sequence_parallel, ctx.has_bias = eps, group, sequence_parallel, bias is not None
        rows = x.flatten(0, -2)
        if sequence_parallel:
            rows = _gathered(_normalized(rows, gamma, eps), group)
        weights = [weight] if down is None else [weight, down]
        outs = [rows.new_empty(rows.shape[0], w.shape[0]) for w in weights]
        for part in blocks(rows.shape[0]):
            normed = rows[part] if sequence_parallel else _normalized(rows[part], gamma, eps)
            for w, b, out in zip(weights, (bias, None), outs, strict=False):
                if b is None:
                    torch.mm(normed, w.t(), out=out[part])
                else:
                    torch.addmm(b, normed, w.t(), out=out[part])
        shaped = tuple(out.view(-1, *x.shape[1:-1], out.shape[1]) for out in outs)
        return shaped[0] if down is None else shaped

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, gamma, weight, down = ctx.saved_tensors
        rows = x.flatten(0, -2)
        gathered = _gathered(_normalized(rows, gamma, ctx.eps), ctx.group) if ctx.sequence_parallel else None
        factors = _factors(ctx, grads, (2, weight), (7, down))
        grad = factors[0][0]
        grad_bias = grad.sum(0) if ctx.has_bias and ctx.needs_input_grad[3] else None
        # gradient of the normalized rows first, in the buffer that becomes the gradient of x
        dx = rows.new_empty(grad.shape[0], rows.shape[1])

        def normed(part: slice) -> torch.Tensor:
            return _normalized(rows[part], gamma, ctx.eps) if gathered is None else gathered[part]

        for part in blocks(grad.shape[0]):
            _input_gradient(factors, part, dx[part])
            _add_weight_gradients(factors, part, partial(normed, part))
        if ctx.sequence_parallel:
            own = torch.empty_like(rows)
            dist.reduce_scatter_tensor(own, dx, group=ctx.group)
            dx = own
        elif ctx.group.size() > 1:
            dist.all_reduce(dx, group=ctx.group)
        grad_gamma = _of_norm()(rows, gamma, ctx.eps, dx)
        grad_weight, grad_down, *_ = _weight_gradients(factors)
        return dx.view(x.shape), grad_gamma.to(gamma.dtype), grad_weight, grad_bias, None, None, None, grad_down


def _of_norm() -> Callable[[torch.Tensor, torch.Tensor, float, torch.Tensor], torch.Tensor]:
    """The gradient of a norm on this device."""
    return _norm_gradient_on_gpu if device.cuda() else _norm_gradient


def _norm_gradient(rows: torch.Tensor, gamma: torch.Tensor, eps: float, dx: torch.Tensor) -> torch.Tensor:
    """Turn the gradient of the normalized rows into that of the rows, in place; the gradient of ``gamma``."""
    grad_gamma = new_sum(gamma)
    for part in blocks(rows.shape[0]):
        block, d = (x[part].flatten(0, -2).float() for x in (rows, dx))
        scale = block.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        unit = block * scale
        product = d * unit
        grad_gamma += product.sum(0)
        along = product.mul_(gamma).mean(-1, keepdim=True)
        dx[part] = (d * gamma).addcmul_(unit, along, value=-1).mul_(scale).view(dx[part].shape)
    return grad_gamma


def _norm_gradient_on_gpu(rows: torch.Tensor, gamma: torch.Tensor, eps: float, dx: torch.Tensor) -> torch.Tensor:
    """As :func:`_norm_gradient`, by torch's fused kernel, which computes in fp32 and writes in the type of the rows."""
    grad_gamma = new_sum(gamma)
    for part in blocks(rows.shape[0]):
        with torch.enable_grad():
            given = rows[part].detach().requires_grad_(), gamma.detach().requires_grad_()
            normed = _normalized(*given, eps)
        dx[part], of_block = torch.autograd.grad(normed, given, dx[part])
        grad_gamma += of_block
    return grad_gamma


def _normalized(rows: torch.Tensor, gamma: torch.Tensor, eps: float) -> torch.Tensor:
    """Computed in the type of ``gamma``, returned in that of ``rows``."""
    return F.rms_norm(rows.to(gamma.dtype), (rows.shape[-1],), gamma, eps).to(rows.dtype)


class _Norm(torch.autograd.Function):
    """``rms_norm(x) * gamma``, block by block. Memory: saved is ``x`` alone."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, gamma: torch.Tensor, eps: float) -> torch.Tensor:
        ctx.save_for_backward(x, gamma)
        ctx.eps = eps
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        for part in blocks(x.shape[0]):
            out[part] = _normalized(x[part], gamma, eps)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, gamma = ctx.saved_tensors
        dx = grad.clone(memory_format=torch.contiguous_format)
        grad_gamma = _of_norm()(x, gamma, ctx.eps, dx)
        return dx, grad_gamma.to(gamma.dtype), None


def norm(x: torch.Tensor, gamma: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm over the last dimension of ``x``, computed in the type of ``gamma``, in the type of ``x``."""
    return _Norm.apply(x, gamma, eps)


def gamma_of(weight: torch.Tensor, zero_centered: bool) -> torch.Tensor:
    """What a norm multiplies with: its weight, or ``1 + weight``, at least in fp32."""
    return 1 + weight.to(torch.promote_types(weight.dtype, torch.float32)) if zero_centered else weight


def _gathered(rows: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """The rows of all tensor-parallel ranks, in rank order: what sequence parallelism splits."""
    out = rows.new_empty(group.size() * rows.shape[0], rows.shape[1])
    dist.all_gather_into_tensor(out, rows, group=group)
    return out


def norm_linear(
    x: torch.Tensor,
    gamma: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    group: dist.ProcessGroup,
    sequence_parallel: bool,
    down: torch.Tensor | None = None,
) -> Any:
    """RMSNorm and the column-parallel linear layer behind it: ``TELayerNormColumnParallelLinear``'s counterpart.

    Args:
        x: ``[s, b, hidden]``; under sequence parallelism this rank's slice of the tokens.
        gamma: ``[hidden]``, the norm's weight.
        weight: ``[out / TP, hidden]``, this rank's rows.
        bias: ``[out / TP]`` or ``None``.
        eps: the norm's.
        group: tensor-parallel group.
        sequence_parallel: gather the tokens before the product and scatter their gradient after it.
        down: ``[n, hidden]``, another weight for the same rows, the same on every rank, or ``None``.

    Returns:
        ``[s, b, out / TP]``, all tokens; with ``down`` also ``[s, b, n]``, all tokens.
    """
    return _NormLinear.apply(x, gamma, weight, bias, eps, group, sequence_parallel, down)


Activation = Callable[[torch.Tensor], torch.Tensor]


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """GELU by its tanh formula, ``gelu_pytorch_tanh`` in a ``config.json``."""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[Activation, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    F.silu: torch.ops.aten.silu_backward,
    gelu_tanh: partial(torch.ops.aten.gelu_backward, approximate="tanh"),
}
"""The gate's activations: the gradient of each from the gradient of its output, and its input."""


class _GatedLinear(torch.autograd.Function):
    """``(activation(y1) * y2) @ weight.T`` with ``y = [y1 | y2]``; SwiGLU where the activation is SiLU.

    1. Forward: activate a block of rows and multiply it with the weight.
    2. Backward: activate the block again for the weight's gradient, which is summed in fp32, and for the gradient of
       ``y``.

    Memory: saved is ``y``, ``2 * tokens * ffn / TP`` of its dtype; besides output and gradients, one block.
    """

    @staticmethod
    def forward(
        ctx: Any, y: torch.Tensor, weight: torch.Tensor, down: torch.Tensor | None, activation: Activation
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        ctx.save_for_backward(y, weight, down)
        ctx.activation = activation
        rows = y.flatten(0, -2)
        weights = [weight] if down is None else [weight, down]
        outs = [rows.new_empty(rows.shape[0], w.shape[0]) for w in weights]
        for part in blocks(rows.shape[0]):
            gate, value = rows[part].chunk(2, -1)
            activated = activation(gate).mul_(value)
            for w, out in zip(weights, outs, strict=True):
                torch.mm(activated, w.t(), out=out[part])
        shaped = tuple(out.view(*y.shape[:-1], out.shape[1]) for out in outs)
        return shaped[0] if down is None else shaped

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        y, weight, down = ctx.saved_tensors
        rows = y.flatten(0, -2)
        dy = torch.empty_like(rows)
        factors = _factors(ctx, grads, (1, weight), (2, down))
        gradient: Any = partial(_gated_gradient, ctx.activation)
        if ctx.activation is F.silu and not device.cuda():
            gradient = _swiglu_gradient
        for part in blocks(rows.shape[0]):
            gradient(rows[part], factors, part, dy[part])
        grad_weight, grad_down, *_ = _weight_gradients(factors)
        return dy.view(y.shape), grad_weight, grad_down, None


def _swiglu_gradient(y: torch.Tensor, factors: list[Factor], part: slice, dy: torch.Tensor) -> None:
    """Write the gradient of a block into ``dy``, and add its part to the gradients of the weights."""
    gate, value = y.float().chunk(2, -1)
    sigmoid = gate.sigmoid()
    silu = gate * sigmoid
    _add_weight_gradients(factors, part, lambda: silu * value)
    d = _input_gradient(factors, part).float()
    d_gate, d_value = dy.chunk(2, -1)
    torch.mul(silu, d, out=d_value)
    # silu'(g) = sigmoid * (1 + g * (1 - sigmoid))
    slope = (1 - sigmoid).mul_(gate).add_(1).mul_(sigmoid)
    torch.mul(d.mul_(value), slope, out=d_gate)


def _gated_gradient(
    activation: Activation, y: torch.Tensor, factors: list[Factor], part: slice, dy: torch.Tensor
) -> None:
    """As :func:`_swiglu_gradient`, in few kernels that compute in fp32 and keep what they make in the type of ``y``."""
    (gate, value), (d_gate, d_value) = y.chunk(2, -1), dy.chunk(2, -1)
    activated = activation(gate)
    _add_weight_gradients(factors, part, lambda: activated * value)
    d = _input_gradient(factors, part)
    torch.mul(activated, d, out=d_value)
    d_gate.copy_(ACTIVATIONS[activation](d.mul_(value), gate))


def gated_linear(
    y: torch.Tensor, weight: torch.Tensor, down: torch.Tensor | None = None, activation: Activation = F.silu
) -> Any:
    """A gated activation and the linear layer behind it.

    Args:
        y: ``[s, b, 2 * ffn / TP]``, gate and value side by side.
        weight: ``[hidden, ffn / TP]``.
        down: ``[n, ffn / TP]``, another weight for the same rows, or ``None``.
        activation: of the gate, one of :data:`ACTIVATIONS`.

    Returns:
        ``[s, b, hidden]``, this tensor-parallel rank's summand; with ``down`` also ``[s, b, n]``, likewise.
    """
    return _GatedLinear.apply(y, weight, down, activation)
