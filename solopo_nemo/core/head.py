"""Response-only log-probabilities: the LM head runs only on the positions that predict a scored token.

Megatron's output layer computes logits for every position. Here the hidden states of the response positions (rows) are
selected first. Head and log-softmax run on these rows, vocabulary-parallel, in tiles that backward computes again. The
largest tensor of logits is one tile, ``[logits_chunk_size, VOCABULARY_TILE]``, for any length of prompt and response
and any vocabulary.
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

from solopo_nemo.core.gradient_sums import gradient_for_autograd, gradient_sum
from solopo_nemo.core.products import add_product, product
from solopo_nemo.runtime import device

VOCABULARY_TILE = 4096
"""Columns of a tile on a CPU: such a tile fits into its cache."""
GPU_VOCABULARY_TILE = 16384
"""Columns of a tile on a GPU: its kernels run long beside the time that their launch takes."""
LOGITS_CHUNK_SIZE = 512
"""Default number of rows of a tile."""


class _VocabParallelLogProb(torch.autograd.Function):
    """``log softmax(rows @ weight.T)[label]`` with the vocabulary split over a tensor-parallel group.

    Forward, for each chunk of ``C`` rows:

    1. For each tile of ``W`` vocabulary columns of this rank, compute the logits ``[C, W]`` in one reused buffer.
       Update the running maximum and the sum of exponentials (online softmax), and keep the logit of the label.
    2. TP: all-reduce the maximum, then the sum and the label's logit: ``3 C`` numbers.
    3. ``log_normalizer = running_max + log(sum_exp)``; the result is ``target_logit - log_normalizer``.

    Backward, for each chunk and tile: compute the logits again, replace them in place by ``grad * (onehot - softmax)``,
    and add the two products to the gradients of rows and weight.

    Memory, with ``R`` rows, ``C = logits_chunk_size`` and ``W`` columns of a tile:

    - saved for backward: rows and weight, which exist anyway, and ``4 R`` bytes of normalizers;
    - temporary: ``[C, W]`` in the model's dtype and in fp32; in backward also ``[R, hidden]`` in fp32, and on a GPU
      ``[W, hidden]``;
    - gradient of the weight: summed in fp32 in Megatron's gradient buffer if there is one, else in a tensor of its own.
      A bf16 sum would lose small terms of a sum over many tiles.

    On a GPU all three products have bf16 factors and an fp32 result (:mod:`solopo_nemo.core.products`). A logit of 16
    that is rounded to bf16 is off by up to 0.06, which adds up to about half a nat over 500 tokens.

    TP: the vocabulary is split. SP, CP, PP, DP: no effect.
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
        grad_weight = gradient_sum(weight) if ctx.needs_input_grad[1] else None
        space = _space(rows, ctx.chunk)
        for i in range(0, rows.shape[0], ctx.chunk):
            part = slice(i, i + ctx.chunk)
            local = labels[part] - ctx.first
            for tile in _tiles(weight):
                # d logp / d logits = onehot - softmax, built in place of the recomputed logits. Transposed, [W, C]: the
                # product for the weight, whose sum is the largest tensor here, then reads its factor along the rows
                d = _logits(weight[tile], rows[part], space)
                d.sub_(log_normalizer[part]).exp_().mul_(-grad[part])
                target, own = _in_tile(local, tile)
                d.scatter_add_(0, target[None], (grad[part] * own)[None])
                if device.cuda():
                    d = d.to(weight.dtype)
                if grad_rows is not None:
                    grad_rows[part] += product(d.t(), weight[tile])
                if grad_weight is not None:
                    add_product(grad_weight[tile], d, rows[part])
        if grad_rows is not None:
            grad_rows = grad_rows.to(rows.dtype)
        return grad_rows, gradient_for_autograd(weight, grad_weight), None, None, None


def _tile_size() -> int:
    return GPU_VOCABULARY_TILE if device.cuda() else VOCABULARY_TILE


def _tiles(weight: torch.Tensor) -> list[slice]:
    size, tile = weight.shape[0], _tile_size()
    return [slice(i, min(i + tile, size)) for i in range(0, size, tile)]


def _space(rows: torch.Tensor, chunk: int) -> torch.Tensor:
    """The buffer for the products of :func:`_logits`: fp32 on a GPU, the dtype of the factors on a CPU."""
    dtype = torch.float32 if device.cuda() else rows.dtype
    return rows.new_empty(min(chunk, rows.shape[0]), _tile_size(), dtype=dtype)


def _logits(rows: torch.Tensor, weight: torch.Tensor, space: torch.Tensor) -> torch.Tensor:
    """fp32 ``rows @ weight.T`` in the reused buffer ``space``: new memory pages would cost as much as the product.

    With the two exchanged the logits are transposed.
    """
    out = space.flatten()[: rows.shape[0] * weight.shape[0]].view(rows.shape[0], weight.shape[0])
    if device.cuda():
        return torch.mm(rows, weight.t(), out_dtype=torch.float32, out=out)
    return torch.mm(rows, weight.t(), out=out).float()


def _in_tile(local: torch.Tensor, tile: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """The column of each label in a tile of this rank's vocabulary, and whether the label is in the tile.

    The column is 0 for a label outside the tile.
    """
    own = (local >= tile.start) & (local < tile.stop)
    return (local - tile.start).masked_fill(~own, 0), own


def vocab_parallel_logprob(
    rows: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    group: dist.ProcessGroup | None,
    chunk: int,
) -> torch.Tensor:
    """The log-probability of each row's label under the vocabulary-parallel softmax.

    Args:
        rows: hidden states ``[R, hidden]``, the same on every rank of ``group``; R may be 0.
        weight: this rank's slice ``[vocabulary / TP, hidden]`` of the head.
        labels: int64 ``[R]``, global vocabulary ids.
        group: tensor-parallel group; ``None`` if the vocabulary is not split.
        chunk: number of rows of a tile of logits.

    Returns:
        fp32 ``[R]``, in nats. The gradient of ``rows`` is this rank's part, which the caller sums over ``group`` as
        after any column-parallel layer. The gradient of ``weight`` is complete.
    """
    return _VocabParallelLogProb.apply(rows, weight, labels, group, chunk)


def sum_by_sequence(
    logp: torch.Tensor, sequence_ids: torch.Tensor, num_sequences: int, cp_group: dist.ProcessGroup
) -> torch.Tensor:
    """Sums token log-probabilities by sequence, over all context-parallel ranks.

    CP: one all-reduce of ``num_sequences`` numbers, whose gradient is the identity; the result is the same on every
    rank. Every rank computes the same loss from the same sums, and its gradient reaches only its own tokens. Megatron
    multiplies the loss by the context-parallel size (pipeline_parallel/schedules.py, forward_step_calc_loss), and its
    DDP averages over data *and* context ranks. The product of both is the gradient of one loss over the whole sequence.

    Args:
        logp: fp32 ``[R]``, in nats, of this rank's response rows.
        sequence_ids: int64 ``[R]``, index of the sequence of each row.
        num_sequences: number of sequences in the micro-batch.
        cp_group: context-parallel group.

    Returns:
        fp32 ``[num_sequences]``, in nats.
    """
    sums = torch.zeros(num_sequences, dtype=logp.dtype, device=logp.device).index_add(0, sequence_ids, logp)
    return reduce_from_tensor_model_parallel_region(sums, group=cp_group)  # the function takes any group


class ResponseHead(ColumnParallelLinear):
    """Megatron's output layer that returns log-probabilities of selected rows inside :meth:`scoring`.

    1. Select the hidden states of the response rows, ``[R, hidden]``, before the head.
    2. Score them with :func:`vocab_parallel_logprob`, ``logits_chunk_size`` rows at a time.

    It shares the weight of the layer that it replaces, so that checkpoints, tied embeddings and the optimizer are
    unchanged. Outside :meth:`scoring` it computes logits as Megatron's layer does (generation, export).

    Memory: ``R * hidden`` for the selected rows, and one tile of logits; no tensor has the length of the prompt.

    - TP: the vocabulary is split, and every rank returns the same numbers.
    - SP: each rank writes its rows into ``[R, hidden]``, and one all-reduce completes it; no full-length tensor is
      gathered.
    - CP: each rank scores its own rows.
    - PP: the head is on the last stage.
    - DP: no effect.

    Attributes:
        logits_chunk_size: number of rows of a tile of logits.
    """

    logits_chunk_size: int
    _request: tuple[torch.Tensor, torch.Tensor] | None = None

    @classmethod
    def from_output_layer(cls, layer: ColumnParallelLinear, logits_chunk_size: int) -> ResponseHead:
        """Creates a response head from a built output layer. The parameters are shared, not copied."""
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
        """Makes the forward passes inside the block score these rows.

        Args:
            logit_positions: int64 ``[R]``, ascending indices into this context-parallel rank's tokens.
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
        """The logits of Megatron's layer; inside :meth:`scoring` the log-probabilities, fp32 ``[R, 1]`` in nats."""
        if self._request is None:
            return super().forward(input_, weight, runtime_gather_output)
        positions, labels = self._request
        rows = self._select(input_[:, 0], positions)
        group = self.tp_group if self.tp_group.size() > 1 else None
        weight = self.weight if weight is None else weight
        return vocab_parallel_logprob(rows, weight, labels, group, self.logits_chunk_size)[:, None], None

    def _select(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """The hidden states ``[R, hidden]`` at the positions, on every tensor-parallel rank.

        Under sequence parallelism each rank holds a slice of the tokens. It writes its own rows into a zero buffer, and
        the sum over the group completes it, so that no full-length tensor is gathered.
        """
        if not self.sequence_parallel:
            return copy_to_tensor_model_parallel_region(tokens[positions], group=self.tp_group)
        local = positions - self.tp_group.rank() * tokens.shape[0]
        own = ((local >= 0) & (local < tokens.shape[0]))[:, None]
        # masked, not selected: the host would have to wait for the number of own rows on a GPU
        mine = torch.where(own, tokens[local.clamp(0, tokens.shape[0] - 1)], 0)
        # forward: sum of the slices; backward: sum of every rank's part of the gradient
        complete = reduce_from_tensor_model_parallel_region(mine, group=self.tp_group)
        return copy_to_tensor_model_parallel_region(complete, group=self.tp_group)
