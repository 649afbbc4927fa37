"""Response-only log-probabilities: the LM head runs on the response rows and on nothing else.

The stock path multiplies every position with the vocabulary and throws most of the result away. Here
the hidden states of the response rows are selected first; head and log-softmax then run on those
rows, vocabulary-parallel, in row chunks whose logits are recomputed in backward. The largest tensor
ever made is ``[row_chunk, vocabulary / TP]``.
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


class _VocabParallelLogProb(torch.autograd.Function):
    """log softmax(rows @ weight.T)[label] with the vocabulary split over a tensor-parallel group.

    Saves rows, weight and one fp32 normalizer a row. The weight's gradient is accumulated over the
    chunks in fp32: summing many bf16 tiles in bf16 loses the small ones.
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
        normalizer = torch.empty_like(logp)
        for i in range(0, rows.shape[0], chunk):
            logits = (rows[i : i + chunk] @ weight.t()).float()
            target, own = _local_label(labels[i : i + chunk], first, weight.shape[0])
            top = logits.max(-1).values
            if group is not None:
                dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
            picked = logits.gather(-1, target[:, None])[:, 0].masked_fill(~own, 0.0)
            total = logits.sub_(top[:, None]).exp_().sum(-1)
            if group is not None:
                both = torch.stack((total, picked))
                dist.all_reduce(both, group=group)
                total, picked = both.unbind()
            normalizer[i : i + chunk] = top + total.log()
            logp[i : i + chunk] = picked - normalizer[i : i + chunk]
        ctx.save_for_backward(rows, weight, labels, normalizer)
        ctx.first, ctx.chunk = first, chunk
        return logp

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, weight, labels, normalizer = ctx.saved_tensors
        grad_rows = torch.zeros_like(rows) if ctx.needs_input_grad[0] else None
        grad_weight = (
            torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if ctx.needs_input_grad[1] else None
        )
        for i in range(0, rows.shape[0], ctx.chunk):
            part = slice(i, i + ctx.chunk)
            # d logp / d logits = onehot - softmax, built in place of the recomputed logits
            d = (rows[part] @ weight.t()).float().sub_(normalizer[part, None]).exp_().mul_(-grad[part, None])
            target, own = _local_label(labels[part], ctx.first, weight.shape[0])
            d.scatter_add_(1, target[:, None], (grad[part] * own)[:, None])
            if grad_rows is not None:
                grad_rows[part] = d.to(weight.dtype) @ weight
            if grad_weight is not None:
                grad_weight.addmm_(d.t(), rows[part].float())
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        return grad_rows, grad_weight, None, None, None


def _local_label(labels: torch.Tensor, first: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Index of each label in this rank's vocabulary slice (0 where it is another rank's), and whose it is."""
    local = labels - first
    own = (local >= 0) & (local < size)
    return local.masked_fill(~own, 0), own


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
        chunk: rows a piece.

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
    logp: torch.Tensor, segments: torch.Tensor, parts: int, cp_group: dist.ProcessGroup | None
) -> torch.Tensor:
    """Sum token log-probabilities ``[R]`` by sequence, over all context-parallel ranks: fp32 ``[parts]``.

    Only ``parts`` numbers cross the context-parallel group.
    """
    sums = torch.zeros(parts, dtype=logp.dtype, device=logp.device).index_add(0, segments, logp)
    if cp_group is None or cp_group.size() == 1:
        return sums
    return _SumOverContext.apply(sums, cp_group)


class ResponseHead(ColumnParallelLinear):
    """Megatron's output layer that, inside :meth:`scoring`, returns log-probabilities of chosen rows.

    It takes over the weight of the layer that it stands for, so that checkpoints, tied embeddings and
    the optimizer see no difference. Outside :meth:`scoring` it is the stock layer (generation, export).
    """

    row_chunk: int
    _request: tuple[torch.Tensor, torch.Tensor] | None = None

    @classmethod
    def take_over(cls, layer: ColumnParallelLinear, row_chunk: int) -> ResponseHead:
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
        head.row_chunk = row_chunk
        return head

    @contextmanager
    def scoring(self, rows: torch.Tensor, labels: torch.Tensor) -> Iterator[None]:
        """Score these rows in the forward passes inside the block.

        Args:
            rows: int64 ``[R]``, index into this context-parallel rank's tokens, ascending.
            labels: int64 ``[R]``, the token that each row predicts.
        """
        self._request = (rows, labels)
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
        rows, labels = self._request
        hidden = self._select(input_[:, 0], rows)
        group = self.tp_group if self.tp_group.size() > 1 else None
        logp = vocab_parallel_logprob(hidden, self.weight if weight is None else weight, labels, group, self.row_chunk)
        return logp[:, None], None

    def _select(self, tokens: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Hidden states ``[R, hidden]`` of the rows, on every tensor-parallel rank.

        Under sequence parallelism each rank holds a slice of the tokens: it lays its own rows into a
        zero buffer and the sum over the group completes it, so that no full-length tensor is gathered.
        """
        if not self.sequence_parallel:
            return copy_to_tensor_model_parallel_region(tokens[rows], group=self.tp_group)
        local = rows - self.tp_group.rank() * tokens.shape[0]
        own = ((local >= 0) & (local < tokens.shape[0])).nonzero()[:, 0]
        mine = torch.zeros(rows.shape[0], tokens.shape[1], dtype=tokens.dtype, device=tokens.device)
        mine = mine.index_copy(0, own, tokens[local[own]])
        # forward: sum of the slices; backward: sum of every rank's part of the gradient
        complete = reduce_from_tensor_model_parallel_region(mine, group=self.tp_group)
        return copy_to_tensor_model_parallel_region(complete, group=self.tp_group)
