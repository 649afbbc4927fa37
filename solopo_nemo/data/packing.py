"""Packing of several sequences into one THD micro-batch, split over context-parallel ranks.

The layout is the one that Transformer Engine's THD attention and Megatron's rotary embedding expect: each sequence is
split into ``2 * cp`` equal chunks, and rank ``r`` holds chunks ``r`` and ``2 * cp - 1 - r`` of every sequence. All
ranks then have the same causal attention work. The module needs torch only, not Megatron.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypedDict

import numpy as np
import torch

from solopo_nemo.data.triplets import sequence_columns


class Batch(TypedDict):
    """One rank's share of a packed micro-batch.

    T is the number of local tokens, padding included. R is the number of local positions that predict a response token.
    Sequences are ordered by sample: index ``i * len(sequences) + j`` is sequence ``j`` of sample ``i``.

    Attributes:
        ids: ids of the samples.
        tokens: int64 ``[1, T]``.
        position_ids: int64 ``[1, T]``; positions start at 0 in every sequence.
        cu_seqlens: int32 ``[num_sequences + 1]``, boundaries of the padded sequences over all context-parallel ranks.
        lengths: Python numbers, the lengths of the padded sequences over all context-parallel ranks: what the host asks
            of them, and what a GPU would have to be waited for.
        logit_positions: int64 ``[R]``, ascending indices into T of the positions that predict a response token.
        labels: int64 ``[R]``, the response token that each of these positions predicts.
        sequence_ids: int64 ``[R]``, index of the sequence of each of these positions.
        response_tokens: int64 ``[num_sequences]``, response tokens of each sequence over all context-parallel ranks.
        input_tokens: int64 ``[num_sequences]``, input tokens without padding over all context-parallel ranks.
    """

    ids: list[str]
    tokens: torch.Tensor
    position_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    lengths: list[int]
    logit_positions: torch.Tensor
    labels: torch.Tensor
    sequence_ids: torch.Tensor
    response_tokens: torch.Tensor
    input_tokens: torch.Tensor


@dataclass(frozen=True)
class Layout:
    """The parallel layout of a rank, as far as it affects packing.

    Attributes:
        cp_size, cp_rank: context-parallel size and rank.
        multiple: divisor of every rank's share of a sequence: the tensor-parallel size under sequence parallelism,
            which splits the local tokens evenly; otherwise 1.
        pad_id: token id of the padding at the end of a sequence. Any id of the vocabulary works: padding is not scored,
            and with causal attention no scored token attends to it.
    """

    cp_size: int = 1
    cp_rank: int = 0
    multiple: int = 1
    pad_id: int = 0

    @property
    def chunks(self) -> int:
        """Number of chunks of one sequence."""
        return 2 * self.cp_size if self.cp_size > 1 else 1

    def padded(self, length: int) -> int:
        """Padded length of a sequence of ``length`` tokens, over all context-parallel ranks."""
        unit = self.chunks * self.multiple
        return -(-length // unit) * unit


def local_chunks(length: int, layout: Layout) -> list[tuple[int, int]]:
    """The position ranges ``[start, stop)`` of one padded sequence that this rank holds, in local order."""
    if layout.cp_size == 1:
        return [(0, length)]
    c = length // layout.chunks
    return [(k * c, (k + 1) * c) for k in (layout.cp_rank, layout.chunks - 1 - layout.cp_rank)]


def pack(samples: Sequence[Mapping[str, Any]], sequences: Sequence[str], layout: Layout) -> Batch:
    """Pack the named sequences of all samples into this rank's share of one THD micro-batch.

    Labels are shifted before the split: position ``t`` predicts token ``t + 1``, even if another rank holds that token.
    The last token of a sequence is a label only, not an input.

    - DP: each rank packs its own samples.
    - TP, SP: all ranks of a group get the same batch; SP needs ``layout.multiple``.
    - CP: each rank gets its chunks; ``cu_seqlens``, ``response_tokens`` and ``input_tokens`` are equal on all ranks.
    - PP: all stages get the same batch.

    Memory per rank: 16 bytes per local token and 24 bytes per local response token.

    Args:
        samples: tokenized samples with the columns that ``sequences`` need (lists or arrays of token ids).
        sequences: names of ``solopo_nemo.objectives.SEQUENCES``, in the order of the sequences of each sample.
        layout: the parallel layout of this rank.

    Raises:
        ValueError: a prompt or a response is empty.
    """
    tokens, positions, logit_positions, labels, sequence_ids = [], [], [], [], []
    lengths, response_tokens, input_tokens = [], [], []
    local_start = 0
    for number, (sample, name) in enumerate((s, n) for s in samples for n in sequences):
        prompt, response = (np.asarray(sample[column], dtype=np.int64) for column in sequence_columns()[name])
        if not len(prompt) or not len(response):
            raise ValueError(f"sample {sample.get('id')!r}: {name} has an empty prompt or response")
        ids = np.concatenate((prompt, response))
        length = len(ids) - 1
        padded = layout.padded(length)
        first, last = len(prompt) - 1, length  # positions that predict a response token
        for start, stop in local_chunks(padded, layout):
            chunk = np.full(stop - start, layout.pad_id, dtype=np.int64)
            chunk[: max(0, min(stop, length) - start)] = ids[start : max(start, min(stop, length))]
            tokens.append(chunk)
            positions.append(np.arange(start, stop))
            scored = np.arange(max(start, first), min(stop, last))
            logit_positions.append(scored - start + local_start)
            labels.append(ids[scored + 1])
            sequence_ids.append(np.full(len(scored), number))
            local_start += stop - start
        lengths.append(padded)
        response_tokens.append(len(response))
        input_tokens.append(length)

    def join(pieces: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(pieces).astype(np.int64))

    return {
        "ids": [sample.get("id", "") for sample in samples],
        "tokens": join(tokens)[None],
        "position_ids": join(positions)[None],
        "cu_seqlens": torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
        "lengths": lengths,
        "logit_positions": join(logit_positions),
        "labels": join(labels),
        "sequence_ids": join(sequence_ids),
        "response_tokens": torch.tensor(response_tokens),
        "input_tokens": torch.tensor(input_tokens),
    }
