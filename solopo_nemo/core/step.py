"""The training step on Megatron-core alone: packed micro-batch in, one log-probability a sequence out.

A micro-batch holds, packed as one THD sequence, every sequence that the objective wants scored, for
every sample. The model returns one number a sequence, the summed log-probability of its response.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams

from solopo_nemo.core.head import ResponseHead, sum_by_sequence

Batch = dict[str, Any]


def score_sequences(model: Any, batch: Batch) -> torch.Tensor:
    """Run ``model`` on a packed micro-batch and sum the response log-probabilities by sequence.

    Args:
        model: a NeMo ``GPTModel`` or a bare Megatron ``GPTModel`` whose head is a :class:`ResponseHead`.
        batch: see :func:`solopo_nemo.data.packing.pack`.

    Returns:
        fp32 ``[parts]`` on the last pipeline stage, the same on every tensor- and context-parallel
        rank; hidden states elsewhere.
    """
    longest = int(batch["max_seqlen"])
    packed = PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=batch["cu_seqlens"],
        cu_seqlens_kv=batch["cu_seqlens"],
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
    )
    head = next((m for m in model.modules() if isinstance(m, ResponseHead)), None)
    with head.scoring(batch["rows"], batch["labels"]) if head else nullcontext():
        out = model(batch["tokens"], batch["position_ids"], None, packed_seq_params=packed)
    if head is None:
        return out
    parts, group = len(batch["response_tokens"]), parallel_state.get_context_parallel_group()
    return sum_by_sequence(out[0], batch["segments"], parts, group)
