"""Response-only log-probabilities: the LM head runs on the rows that predict a response token and on nothing else.

The stock path multiplies every position with the vocabulary and throws most of the result away. Here the hidden states
of the response rows are selected first. Head and log-softmax then run on those rows, vocabulary-parallel, in tiles of
the logits that are recomputed in backward. The largest tensor of logits that ever exists is one tile,
``[logits_chunk_size, VOCABULARY_TILE]``, whatever the prompt, the response and the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import ColumnParallelLinear
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
from torch.autograd.function import once_differentiable

from solopo_nemo.core.products import add_product, product
from solopo_nemo.runtime import device

VOCABULARY_TILE = 4096
"""Columns of the logits that a CPU makes at a time: few enough to stay in its cache."""
GPU_VOCABULARY_TILE = 16384
"""Columns that a GPU makes at a time: each tile starts kernels, which have to be long beside their start."""
LOGITS_CHUNK_SIZE = 512
"""Rows of the logits that are made at a time, where the user names no other number."""


class _VocabParallelLogProb(torch.autograd.Function):
    """``log softmax(rows @ weight.T)[label]`` with the vocabulary split over a tensor-parallel group.

    Forward, for each chunk of ``C`` rows:

    1. For each tile of ``W`` vocabulary columns of this rank, make the logits ``[C, W]`` in one reused buffer. Update
       the running maximum and the sum of exponentials (online softmax), and keep the logit of the label.
    2. TP: all-reduce the maximum, then the sum and the label's logit: ``3 C`` numbers.
    3. ``log_normalizer = running_max + log(sum_exp)``; the result is ``target_logit - log_normalizer``.

    Backward, for each chunk and tile: make the logits again, turn them in place into ``grad * (onehot - softmax)``, and
    add the two products to the gradients of rows and weight.

    Memory, with ``R`` rows, ``C = logits_chunk_size`` and ``W`` columns a tile: saved are rows and weight, which exist,
    and ``4 R`` bytes of normalizers. Besides, ``[C, W]`` in the model's dtype and in fp32, and in backward
    ``[R, hidden]`` in fp32, on a GPU also ``[W, hidden]``. The weight's gradient is summed in fp32, because a sum of
    many bf16 tiles in bf16 loses the small ones: in Megatron's gradient buffer where there is one, so that no second
    tensor of the weight's size is made.

    On a GPU all three products have bf16 factors and an fp32 result (:mod:`solopo_nemo.core.products`). Logits that are
    rounded to bf16 are off by up to 0.06 at 16, which adds up to about half a nat over 500 tokens.

    TP: the vocabulary is split. SP, CP, PP, DP: nothing to do here.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        group: dist.ProcessGroup | None,
        chunk: int,
    ) -> torch.Tensor:
        first = weight.shape[0] * (group.rank() if group is not None else 0)
        logp = torch.empty(rows.shape[0], dtype=torch.float32, device=rows.device)
        log_normalizer = torch.empty_like(logp)
        space = _space(rows, chunk)
        for i in range(0, rows.shape[0], chunk):
            part = slice(i, i + chunk)
            local = labels[part] - first
            running_max = torch.full_like(logp[part], -torch.inf)
            sum_exp, target_logit = torch.zeros_like(running_max), torch.zeros_like(running_max)
            for tile in _tiles(weight):
                logits = _logits(rows[part], weight[tile], space)
                target, own = _in_tile(local, tile)
                target_logit += logits.gather(-1, target[:, None])[:, 0].masked_fill_(~own, 0.0)
                new_max = torch.maximum(running_max, logits.amax(-1))
                sum_exp = sum_exp.mul_((running_max - new_max).exp_()).add_(
                    logits.sub_(new_max[:, None]).exp_().sum(-1)
                )
                running_max = new_max
            if group is not None:
                global_max = running_max.clone()
                dist.all_reduce(global_max, op=dist.ReduceOp.MAX, group=group)
                sums = torch.stack((sum_exp.mul_((running_max - global_max).exp_()), target_logit))
                dist.all_reduce(sums, group=group)
                (sum_exp, target_logit), running_max = sums.unbind(), global_max
            log_normalizer[part] = running_max + sum_exp.log()
            logp[part] = target_logit - log_normalizer[part]
        ctx.save_for_backward(rows, weight, labels, log_normalizer)
        ctx.first, ctx.chunk = first, chunk
        return logp

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, weight, labels, log_normalizer = ctx.saved_tensors
        grad_rows = (
            torch.zeros(rows.shape, dtype=torch.float32, device=rows.device) if ctx.needs_input_grad[0] else None
        )
        grad_weight = _gradient_sum(weight) if ctx.needs_input_grad[1] else None
        space = _space(rows, ctx.chunk)
        for i in range(0, rows.shape[0], ctx.chunk):
            part = slice(i, i + ctx.chunk)
            local = labels[part] - ctx.first
            for tile in _tiles(weight):
                # d logp / d logits = onehot - softmax, built in place of the recomputed logits
                d = _logits(rows[part], weight[tile], space)
                d.sub_(log_normalizer[part, None]).exp_().mul_(-grad[part, None])
                target, own = _in_tile(local, tile)
                d.scatter_add_(1, target[:, None], (grad[part] * own)[:, None])
                if device.cuda():
                    d = d.to(weight.dtype)
                if grad_rows is not None:
                    grad_rows[part] += product(d, weight[tile])
                if grad_weight is not None:
                    add_product(grad_weight[tile], d.t(), rows[part])
        if grad_rows is not None:
            grad_rows = grad_rows.to(rows.dtype)
        return grad_rows, _wgrad_placeholder(weight, grad_weight), None, None, None


def _gradient_sum(weight: torch.Tensor) -> torch.Tensor:
    """An fp32 tensor to add the weight's gradient to."""
    main_grad = getattr(weight, "main_grad", None)
    if main_grad is not None and main_grad.dtype == torch.float32:
        return main_grad
    return torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)


def _wgrad_placeholder(weight: Any, total: torch.Tensor | None) -> torch.Tensor | None:
    """What autograd is given for a weight's gradient ``total`` of :func:`_gradient_sum`.

    For one that is in Megatron's buffer already: on a GPU a tensor that only wakes the hook which starts the
    overlapped reduction, as ``LinearWithGradAccumulationAndAsyncCommunication`` of Megatron-core does
    (tensor_parallel/layers.py:570-605); nothing on the CPU, where gradients are reduced at the end.
    """
    if total is None or total is not getattr(weight, "main_grad", None):
        return None if total is None else total.to(weight.dtype)
    if not device.cuda():
        return None
    weight.grad_added_to_main_grad = True
    try:  # one tensor for all weights of a shape, as Megatron's own layers take it
        from transformer_engine.pytorch.module.base import get_dummy_wgrad
    except ImportError:
        return torch.zeros_like(weight) if getattr(weight, "zero_out_wgrad", False) else torch.empty_like(weight)
    placeholder: torch.Tensor = get_dummy_wgrad(
        list(weight.shape), weight.dtype, zero=getattr(weight, "zero_out_wgrad", False)
    )
    return placeholder


def _tile_size() -> int:
    return GPU_VOCABULARY_TILE if device.cuda() else VOCABULARY_TILE


def _tiles(weight: torch.Tensor) -> list[slice]:
    size, tile = weight.shape[0], _tile_size()
    return [slice(i, min(i + tile, size)) for i in range(0, size, tile)]


def _space(rows: torch.Tensor, chunk: int) -> torch.Tensor:
    """For the products of :func:`_logits`: fp32 on a GPU, on a CPU in the type of the factors."""
    dtype = torch.float32 if device.cuda() else rows.dtype
    return rows.new_empty(min(chunk, rows.shape[0]), _tile_size(), dtype=dtype)


def _logits(rows: torch.Tensor, weight: torch.Tensor, space: torch.Tensor) -> torch.Tensor:
    """fp32 ``rows @ weight.T``, in ``space`` again and again: fresh pages cost as much as the product."""
    out = space.flatten()[: rows.shape[0] * weight.shape[0]].view(rows.shape[0], weight.shape[0])
    if device.cuda():
        return torch.mm(rows, weight.t(), out_dtype=torch.float32, out=out)
    return torch.mm(rows, weight.t(), out=out).float()


def _in_tile(local: torch.Tensor, tile: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Index of each label in a tile of this rank's vocabulary (0 where it is not there), and whether it is there."""
    own = (local >= tile.start) & (local < tile.stop)
    return (local - tile.start).masked_fill(~own, 0), own


def vocab_parallel_logprob(
    rows: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    group: dist.ProcessGroup | None,
    chunk: int,
) -> torch.Tensor:
    """Log-probability of each row's label under the vocabulary-parallel softmax.

    Args:
        rows: hidden states ``[R, hidden]``, the same on every rank of ``group``; R may be 0.
        weight: this rank's slice ``[vocabulary / TP, hidden]`` of the head.
        labels: int64 ``[R]``, global vocabulary ids.
        group: tensor-parallel group, ``None`` for an undivided vocabulary.
        chunk: rows whose logits exist at a time.

    Returns:
        fp32 ``[R]``, nats. The gradient of ``rows`` is this rank's part (the caller sums it over
        ``group``, as after any column-parallel layer); the gradient of ``weight`` is whole.
    """
    return _VocabParallelLogProb.apply(rows, weight, labels, group, chunk)


class _SumOverContext(torch.autograd.Function):
    """All-reduce whose gradient is the identity.

    Every context-parallel rank then computes the same loss from the same sums, and sends its gradient
    only into its own tokens. Megatron multiplies the loss by the context-parallel size
    (pipeline_parallel/schedules.py, forward_step_calc_loss) and its DDP averages over data *and*
    context ranks: together the gradient of one loss over the whole sequence.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        x = x.clone()
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad, None


def sum_by_sequence(
    logp: torch.Tensor, sequence_ids: torch.Tensor, num_sequences: int, cp_group: dist.ProcessGroup | None
) -> torch.Tensor:
    """Sum token log-probabilities by sequence, over all context-parallel ranks.

    CP: ``num_sequences`` numbers cross the group; the result is the same on every rank.

    Args:
        logp: fp32 ``[R]``, of this rank's response rows.
        sequence_ids: int64 ``[R]``, the sequence of each row.
        num_sequences: in the micro-batch.
        cp_group: context-parallel group, or ``None``.

    Returns:
        fp32 ``[num_sequences]``, nats.
    """
    sums = torch.zeros(num_sequences, dtype=logp.dtype, device=logp.device).index_add(0, sequence_ids, logp)
    if cp_group is None or cp_group.size() == 1:
        return sums
    return _SumOverContext.apply(sums, cp_group)


class ResponseHead(ColumnParallelLinear):
    """Megatron's output layer that, inside :meth:`scoring`, returns log-probabilities of chosen rows.

    1. Select the hidden states of the response rows, ``[R, hidden]``, before the head.
    2. Score them with :func:`vocab_parallel_logprob`, ``logits_chunk_size`` rows at a time.

    It shares the weight of the layer that it is made from, so that checkpoints, tied embeddings and the optimizer see
    no difference. Outside :meth:`scoring` it is the stock layer (generation, export).

    Memory: ``R * hidden`` for the selected rows, and one tile of logits; nothing of the length of the prompt.
    TP: the vocabulary is split, and every rank returns the same numbers.
    SP: each rank lays its rows into ``[R, hidden]`` and one all-reduce completes it; no full-length tensor is gathered.
    CP: each rank scores its own rows. PP: the head is on the last stage. DP: nothing to do here.

    Attributes:
        logits_chunk_size: rows of the logits that are made at a time.
    """

    logits_chunk_size: int
    _request: tuple[torch.Tensor, torch.Tensor] | None = None

    @classmethod
    def from_output_layer(cls, layer: ColumnParallelLinear, logits_chunk_size: int) -> ResponseHead:
        """Make a response head out of a built output layer; the parameters are shared, not copied."""
        head = cls(
            layer.input_size,
            layer.output_size,
            config=layer.config,
            init_method=layer.config.init_method,
            bias=False,
            gather_output=layer.gather_output,
            skip_bias_add=layer.skip_bias_add,
            skip_weight_param_allocation=True,
            tp_group=layer.tp_group,
        )
        if layer.weight is not None:
            del head.weight
            head.weight = layer.weight
        head.logits_chunk_size = logits_chunk_size
        return head

    @contextmanager
    def scoring(self, logit_positions: torch.Tensor, labels: torch.Tensor) -> Iterator[None]:
        """Score these rows in the forward passes inside the block.

        Args:
            logit_positions: int64 ``[R]``, index into this context-parallel rank's tokens, ascending.
            labels: int64 ``[R]``, the token that each row predicts.
        """
        self._request = (logit_positions, labels)
        try:
            yield
        finally:
            self._request = None

    def forward(
        self,
        input_: torch.Tensor,
        weight: torch.Tensor | None = None,
        runtime_gather_output: bool | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits as the stock layer, or ``[R, 1]`` fp32 log-probabilities inside :meth:`scoring`."""
        if self._request is None:
            return super().forward(input_, weight, runtime_gather_output)
        positions, labels = self._request
        rows = self._select(input_[:, 0], positions)
        group = self.tp_group if self.tp_group.size() > 1 else None
        weight = self.weight if weight is None else weight
        return vocab_parallel_logprob(rows, weight, labels, group, self.logits_chunk_size)[:, None], None

    def _select(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Hidden states ``[R, hidden]`` at the positions, on every tensor-parallel rank.

        Under sequence parallelism each rank holds a slice of the tokens: it lays its own rows into a
        zero buffer and the sum over the group completes it, so that no full-length tensor is gathered.
        """
        if not self.sequence_parallel:
            return copy_to_tensor_model_parallel_region(tokens[positions], group=self.tp_group)
        local = positions - self.tp_group.rank() * tokens.shape[0]
        own = ((local >= 0) & (local < tokens.shape[0]))[:, None]
        # their number is not asked for: on a GPU the host would wait for it
        mine = torch.where(own, tokens[local.clamp(0, tokens.shape[0] - 1)], 0)
        # forward: sum of the slices; backward: sum of every rank's part of the gradient
        complete = reduce_from_tensor_model_parallel_region(mine, group=self.tp_group)
        return copy_to_tensor_model_parallel_region(complete, group=self.tp_group)
