"""The input embedding on a CPU: its gradient is added to Megatron's buffer by row.

Example: a micro-batch of 10,000 tokens reads at most 10,000 rows of a table of 152,064. torch's gradient of the lookup
is a tensor of the whole table, which is written with zeros, filled, and added to the buffer. Here only the rows that
were read are summed and added. The result is the same to the bit.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import VocabParallelEmbedding
from megatron.core.tensor_parallel.mappings import (
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from torch.autograd.function import once_differentiable

from solopo_nemo.core.gradient_sums import gradient_for_autograd, gradient_sum


class _Lookup(torch.autograd.Function):
    """``weight[ids]``.

    Memory: saved are the ids. Backward takes ``tokens * hidden`` of the gradient's dtype, and 8 bytes for each row of
    the weight.
    """

    @staticmethod
    def forward(ctx: Any, ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(ids, weight)
        return F.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, torch.Tensor | None]:
        ids, weight = ctx.saved_tensors
        ids, grad, total = ids.flatten(), grad.flatten(0, -2), gradient_sum(weight)
        # the sum over all tokens with the same id stands at the place of one of them; the others' places hold zeros
        places = ids.new_empty(weight.shape[0])
        places[ids] = torch.arange(ids.numel(), device=ids.device)
        sums = torch.ops.aten.embedding_dense_backward(grad, places[ids], ids.numel(), -1, False)
        total.index_add_(0, ids, sums.to(total.dtype))
        return None, gradient_for_autograd(weight, total)


class RowGradientEmbedding(VocabParallelEmbedding):
    """Megatron's input embedding with the gradient of :class:`_Lookup`.

    - TP: each rank holds ``vocabulary / TP`` rows; the outputs are summed over the ranks.
    - SP: the sum is scattered over the tokens.
    - CP, DP: each rank reads its own tokens. PP: the embedding is on the first stage.
    """

    def forward(self, input_: torch.Tensor) -> torch.Tensor:
        """The rows ``[b, s, hidden]`` of int64 ids ``[b, s]``; under SP this rank's slice ``[s / TP, b, hidden]``."""
        if self.tp_group.size() == 1:
            return _Lookup.apply(input_, self.weight)
        others = (input_ < self.vocab_start_index) | (input_ >= self.vocab_end_index)
        rows = _Lookup.apply((input_ - self.vocab_start_index).masked_fill_(others, 0), self.weight)
        rows = rows.masked_fill(others[..., None], 0.0)
        if self.reduce_scatter_embeddings:
            rows = rows.transpose(0, 1).contiguous()
            return reduce_scatter_to_sequence_parallel_region(rows, group=self.tp_group)
        return reduce_from_tensor_model_parallel_region(rows, group=self.tp_group)
