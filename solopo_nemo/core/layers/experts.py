"""Mixture-of-experts layers without Transformer Engine, under the checkpoint keys of Transformer Engine's.

Megatron-core routes the tokens, sends them to their experts and back (``MoELayer``, its all-to-all dispatcher, which
drops no token). Here are the router, which also counts, and the experts as one grouped product.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler, save_to_aux_losses_tracker
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.autograd.function import once_differentiable

from solopo_nemo.runtime import device

Z_LOSS = "z_loss"
"""Megatron's name of the z-loss in its tracker."""


class _RouterLogits(torch.autograd.Function):
    """``x @ weight.T`` in fp32, of which the factors are saved in their own types.

    Megatron's (moe_utils.py:1192) has no name ``te_general_gemm`` where Transformer Engine is not installed.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return torch.nn.functional.linear(x.float(), weight.float())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x = (grad @ weight.float()).to(x.dtype)
        rows = grad.flatten(0, -2).t(), x.flatten(0, -2).float()
        return grad_x, torch.mm(*rows).to(weight.dtype) if ctx.needs_input_grad[1] else None


class Router(TopKRouter):
    """Megatron's router, which counts the tokens of each expert and has the exact z-loss of unevenly padded ranks.

    The load-balancing loss and the z-loss are those of a micro-batch: of all its real tokens, whichever sequence they
    belong to, over the tensor- and context-parallel ranks. Padding counts in neither.

    Attributes:
        load: int64 ``[experts]``, real tokens that this rank sent to each expert in passes with gradients, since the
            last :func:`solopo_nemo.core.experts.take_metrics`; ``None`` before the first.
    """

    load: torch.Tensor | None = None

    def gating(self, input: torch.Tensor) -> torch.Tensor:
        """The logits of the experts, fp32 ``[s, b, experts]``."""
        logits: torch.Tensor = _RouterLogits.apply(input, self.weight)
        return logits

    def routing(self, logits: torch.Tensor, padding_mask: torch.Tensor | None = None) -> Any:
        """As Megatron's; ``padding_mask`` is True where a token is padding."""
        probs, chosen = super().routing(logits, padding_mask)
        if self.training and torch.is_grad_enabled():
            real = chosen if padding_mask is None else chosen & ~padding_mask.reshape(-1, 1)
            self.load = real.sum(0) if self.load is None else self.load + real.sum(0)
        return probs, chosen

    def apply_z_loss(self, logits: torch.Tensor, padding_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Attach the z-loss: the mean over real tokens of the squared log of the sum of exponentials.

        Megatron's (router.py:493) divides by each rank's own tokens, which is wrong where ranks have unequal padding.
        """
        weight = self.config.moe_z_loss_coeff
        if not weight or not self.training or not torch.is_grad_enabled():
            return logits
        squares = torch.logsumexp(logits, -1).square()
        real = torch.ones_like(squares) if padding_mask is None else (~padding_mask).to(squares)
        count = real.sum()
        dist.all_reduce(count, group=self.tp_cp_group)
        loss = (squares * real).sum() / count
        save_to_aux_losses_tracker(
            Z_LOSS, loss, self.layer_number, self.config.num_layers, reduce_group=self.tp_cp_group
        )
        scaled: torch.Tensor = MoEAuxLossAutoScaler.apply(logits, loss * weight)
        return scaled


class _Stacked(torch.nn.Module):
    """One linear layer of all local experts, without bias; its weights are ``[local experts, out, in]``."""

    def __init__(self, config: TransformerConfig, shape: Sequence[int], split: int) -> None:
        super().__init__()
        where = None if config.use_cpu_initialization else device.current()
        self.weight = torch.nn.Parameter(torch.empty(*shape, dtype=config.params_dtype, device=where))
        if config.perform_initialization:
            torch.nn.init.normal_(self.weight, std=config.init_method_std)
        # "parallel" even where undivided, as Megatron's experts: each rank's are its own in the norm of the gradient
        set_tensor_model_parallel_attributes(self.weight, True, split, 1)
        # reduced over the ranks with the same experts, and not over all data-parallel ranks
        self.weight.allreduce = False  # type: ignore[attr-defined]

    def forward(self, rows: torch.Tensor, counts: list[int]) -> tuple[torch.Tensor, None]:
        """:func:`grouped_linear`, in the shape of Transformer Engine's layer."""
        return grouped_linear(rows, self.weight, counts), None


class Experts(MegatronModule):
    """The local experts of a layer, SwiGLU MLPs, as one grouped product: ``TEGroupedMLP``'s counterpart.

    EP: each rank has ``experts / EP`` of them. Expert TP: each has ``size / ETP`` of an expert's channels; the
    dispatcher sums the outputs. SP, CP, DP: the tokens of a rank come from all ranks of its expert group. PP: as the
    layer.

    Memory, with ``n`` tokens that reach this rank: ``3 * size * hidden / (EP * ETP)`` parameters an expert; saved for
    backward are ``n * (hidden + 2 * size / ETP)`` numbers and ``n`` weights.

    Attributes:
        fused: False: the two layers are products of their own, as adapters beside them (forward hooks) need them.
    """

    fused = True

    def __init__(self, num_local_experts: int, config: TransformerConfig, pg_collection: Any = None) -> None:
        super().__init__(config=config)
        self.ep_group, self.tp_group, self.dp_group = pg_collection.ep, pg_collection.expt_tp, pg_collection.expt_dp
        size = config.moe_ffn_hidden_size
        assert size is not None
        own, hidden = size // self.tp_group.size(), config.hidden_size
        self.linear_fc1 = _Stacked(config, (num_local_experts, 2 * own, hidden), 1)
        self.linear_fc2 = _Stacked(config, (num_local_experts, hidden, own), 2)

    def forward(self, tokens: torch.Tensor, tokens_per_expert: Any, probs: torch.Tensor) -> tuple[torch.Tensor, None]:
        """The experts' outputs times the router's weights.

        Args:
            tokens: ``[n, hidden]``, sorted by local expert.
            tokens_per_expert: int64 ``[local experts]``, or a list.
            probs: ``[n]``, the router's weights.

        Returns:
            ``[n, hidden]``, of this expert-tensor-parallel rank's channels; and ``None``, for no bias.
        """
        counts = tokens_per_expert.tolist() if torch.is_tensor(tokens_per_expert) else tokens_per_expert
        if self.fused:
            return _GroupedSwiGLU.apply(tokens, self.linear_fc1.weight, self.linear_fc2.weight, probs, counts), None
        out: tuple[torch.Tensor, None] = self.linear_fc2(
            _WeightedSwiGLU.apply(self.linear_fc1(tokens, counts)[0], probs), counts
        )
        return out

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> Any:
        """Each expert as a tensor of its own, under the keys of ``SequentialMLP`` and ``TEGroupedMLP``."""
        axis, count = len(sharded_offsets), self.linear_fc1.weight.shape[0]
        first, everywhere = self.ep_group.rank() * count, self.ep_group.size() * count
        tp, rank, replica = self.tp_group.size(), self.tp_group.rank(), (0, 0, self.dp_group.rank())

        def factory(name: str, pieces: int, split: int) -> ShardedTensorFactory:
            def shard(key: str, stacked: torch.Tensor, replica_id: Any, flattened_range: Any) -> Any:
                return [
                    [
                        ShardedTensor.from_rank_offsets(
                            key,
                            piece.contiguous(),
                            *sharded_offsets,
                            (axis, first + number, everywhere),
                            (axis + 1 + split, rank + place * tp, pieces * tp),
                            replica_id=replica_id,
                            prepend_axis_num=axis + 1,
                        )
                        for place, piece in enumerate(expert.chunk(pieces, split))
                    ]
                    for number, expert in enumerate(stacked)
                ]

            def merge(state: Any) -> torch.Tensor:
                return torch.stack([torch.cat(expert, split) for expert in state])

            weight = getattr(self, name).weight
            return ShardedTensorFactory(f"{prefix}experts.{name}.weight", weight, shard, merge, replica)

        return {
            f"{prefix}linear_fc1.weight": factory("linear_fc1", 2, 0),  # gate and up
            f"{prefix}linear_fc2.weight": factory("linear_fc2", 1, 1),
        }


class _GroupedSwiGLU(torch.autograd.Function):
    """``probs * (silu(y1) * y2) @ w2[e].T`` with ``y = [y1 | y2] = x @ w1[e].T``, for the expert ``e`` of each row.

    1. Forward: a grouped product, SwiGLU and the router's weights, a grouped product.
    2. Backward: activate again, then two grouped products for the rows and two for the weights.

    Memory: saved are ``x``, ``y`` and ``probs``; besides, while it runs, the activated rows and in backward the
    gradient of ``y``.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor, probs: torch.Tensor, counts: list[int]
    ) -> torch.Tensor:
        y = _grouped(x, w1.transpose(1, 2), counts)
        ctx.save_for_backward(x, w1, w2, probs, y)
        ctx.counts = counts
        return _grouped(_activated(y, probs), w2.transpose(1, 2), counts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, w1, w2, probs, y = ctx.saved_tensors
        counts, grad = ctx.counts, grad.contiguous()
        activated, dy, grad_probs = _activation_gradient(y, probs, _grouped(grad, w2, counts))
        grad_w2 = _grouped_weight(grad, activated, counts) if ctx.needs_input_grad[2] else None
        grad_w1 = _grouped_weight(dy, x, counts) if ctx.needs_input_grad[1] else None
        grad_x = _grouped(dy, w1, counts) if ctx.needs_input_grad[0] else None
        return grad_x, grad_w1, grad_w2, grad_probs, None


class _WeightedSwiGLU(torch.autograd.Function):
    """``probs * silu(y1) * y2`` with ``y = [y1 | y2]``. Memory: saved are ``y`` and ``probs``."""

    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(y, probs)
        return _activated(y, probs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        y, probs = ctx.saved_tensors
        return _activation_gradient(y, probs, grad.clone())[1:]


class _GroupedLinear(torch.autograd.Function):
    """``x @ weight[e].T`` for the expert ``e`` of each row. Memory: ``x`` is saved where the weight is trained."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, counts: list[int]) -> torch.Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.counts = counts
        return _grouped(x, weight.transpose(1, 2), counts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (x, weight), grad = ctx.saved_tensors, grad.contiguous()
        grad_x = _grouped(grad, weight, ctx.counts) if ctx.needs_input_grad[0] else None
        return grad_x, None if x is None else _grouped_weight(grad, x, ctx.counts), None


def grouped_linear(rows: torch.Tensor, weight: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """The product of each row with the weight of its expert.

    Args:
        rows: ``[n, in]``, sorted by expert.
        weight: ``[experts, out, in]``.
        counts: rows of each expert.

    Returns:
        ``[n, out]``.
    """
    out: torch.Tensor = _GroupedLinear.apply(rows, weight, counts)
    return out


def _activated(y: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
    gate, value = y.chunk(2, -1)
    return torch.nn.functional.silu(gate).mul_(value).mul_(probs[:, None].to(y.dtype))


def _activation_gradient(
    y: torch.Tensor, probs: torch.Tensor, d: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """:func:`_activated` again, and the gradients of ``y`` and ``probs``; ``d``, that of the output, is overwritten."""
    weights = probs[:, None].to(y.dtype)
    gate, value = y.chunk(2, -1)
    silu = torch.nn.functional.silu(gate)
    activated = silu * value
    grad_probs = (d * activated).sum(-1, dtype=probs.dtype)
    d.mul_(weights)
    dy = torch.empty_like(y)
    d_gate, d_value = dy.chunk(2, -1)
    torch.mul(silu, d, out=d_value)
    d_gate.copy_(torch.ops.aten.silu_backward(d.mul_(value), gate))
    return activated.mul_(weights), dy, grad_probs


def _is_one_product(x: torch.Tensor) -> bool:
    """Whether torch has one kernel for all experts: on CUDA in bf16."""
    return device.cuda() and x.dtype == torch.bfloat16


def _offsets(counts: list[int], where: torch.device) -> torch.Tensor:
    """int32 ``[experts]``, where each expert's rows end."""
    return torch.tensor(list(accumulate(counts)), dtype=torch.int32, device=where)


def _parts(counts: list[int]) -> list[slice]:
    return [slice(end - count, end) for count, end in zip(counts, accumulate(counts), strict=True)]


def _grouped(rows: torch.Tensor, weight: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """``rows[e's] @ weight[e]`` for every expert: ``[n, k]`` and ``[experts, k, m]`` to ``[n, m]``."""
    if _is_one_product(rows):
        return torch._grouped_mm(rows, weight, offs=_offsets(counts, rows.device))
    out = rows.new_empty(rows.shape[0], weight.shape[2])
    for part, own in zip(_parts(counts), weight, strict=True):
        torch.mm(rows[part], own, out=out[part])
    return out


def _grouped_weight(grad: torch.Tensor, rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """``grad[e's].T @ rows[e's]`` for every expert: ``[n, m]`` and ``[n, k]`` to ``[experts, m, k]``."""
    if _is_one_product(rows):
        return torch._grouped_mm(grad.t(), rows, offs=_offsets(counts, rows.device))
    out = rows.new_empty(len(counts), grad.shape[1], rows.shape[1])
    for part, own in zip(_parts(counts), out, strict=True):
        torch.mm(grad[part].t(), rows[part], out=own)
    return out
