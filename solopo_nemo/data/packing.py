"""One packed (THD) micro-batch of several sequences, split over context-parallel ranks.

Torch only: no Megatron. The layout is the one that Transformer Engine's THD attention and Megatron's
rotary embedding expect: every sequence is cut into ``2 * cp`` equal chunks on its own, and rank ``r``
holds chunks ``r`` and ``2 * cp - 1 - r`` of each (balanced causal work), sequence after sequence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import torch

from solopo_nemo.data.triplets import sequence_columns


class Batch(TypedDict):
    """One rank's share of a packed micro-batch.

    T is the number of local tokens, padding included, and R the number of local response rows. The sequences are
    ordered sample by sample: number ``i * len(sequences) + j`` is sequence ``j`` of sample ``i``.

    Attributes:
        ids: of the samples, in order.
        tokens: int64 ``[1, T]``.
        position_ids: int64 ``[1, T]``; they begin anew with every sequence.
        cu_seqlens: int32 ``[num_sequences + 1]``, boundaries of the padded sequences, over all context-parallel ranks.
        max_seqlen: int64 scalar, length of the longest padded sequence.
        logit_positions: int64 ``[R]``, index into T of each row that predicts a response token, ascending.
        labels: int64 ``[R]``, the token that each of these rows predicts.
        sequence_ids: int64 ``[R]``, number of the sequence of each of these rows.
        response_tokens: int64 ``[num_sequences]``, tokens of each response, over all context-parallel ranks.
        input_tokens: int64 ``[num_sequences]``, tokens that the model reads, without padding, over all of them.
    """

    ids: list[str]
    tokens: torch.Tensor
    position_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: torch.Tensor
    logit_positions: torch.Tensor
    labels: torch.Tensor
    sequence_ids: torch.Tensor
    response_tokens: torch.Tensor
    input_tokens: torch.Tensor


@dataclass(frozen=True)
class Layout:
    """Where a rank stands, as far as packing has to know.

    Attributes:
        cp_size, cp_rank: context parallelism.
        multiple: every rank's share of a sequence is a multiple of this (the tensor-parallel size
            under sequence parallelism, which cuts the local tokens evenly, else 1).
        pad_id: token id of the padding at the end of a sequence, any that the model has: it is never scored and,
            attention being causal, never seen by a token that is.
    """

    cp_size: int = 1
    cp_rank: int = 0
    multiple: int = 1
    pad_id: int = 0

    @property
    def chunks(self) -> int:
        """Number of chunks that one sequence is cut into."""
        return 2 * self.cp_size if self.cp_size > 1 else 1

    def padded(self, length: int) -> int:
        """Length of a sequence of ``length`` tokens with its padding, summed over all ranks."""
        unit = self.chunks * self.multiple
        return -(-length // unit) * unit


def local_chunks(length: int, layout: Layout) -> list[tuple[int, int]]:
    """Half-open ranges of the positions of one padded sequence that this rank holds, in local order."""
    if layout.cp_size == 1:
        return [(0, length)]
    c = length // layout.chunks
    return [(k * c, (k + 1) * c) for k in (layout.cp_rank, layout.chunks - 1 - layout.cp_rank)]


def pack(samples: Sequence[Mapping[str, Any]], sequences: Sequence[str], layout: Layout) -> Batch:
    """Pack the named sequences of all samples into this rank's share of one THD micro-batch.

    Labels are shifted before the split: the row at position ``t`` predicts token ``t + 1``, whichever
    rank that token lies on, and the last token of a sequence is no input.

    Args:
        samples: tokenized samples with the columns that ``sequences`` need (lists or arrays of ids).
        sequences: names of ``solopo_nemo.objectives.SEQUENCES``, in the order in which each sample's are laid out.
        layout: this rank's place.

    Raises:
        ValueError: an empty prompt or response.
    """
    tokens, positions, logit_positions, labels, sequence_ids = [], [], [], [], []
    boundaries, response_tokens, input_tokens = [0], [], []
    local_start = 0
    for number, (sample, name) in enumerate((s, n) for s in samples for n in sequences):
        prompt, response = (np.asarray(sample[column], dtype=np.int64) for column in sequence_columns()[name])
        if not len(prompt) or not len(response):
            raise ValueError(f"sample {sample.get('id')!r}: {name} has an empty prompt or response")
        ids = np.concatenate((prompt, response))
        length = len(ids) - 1
        padded = layout.padded(length)
        first, last = len(prompt) - 1, length  # rows whose next token belongs to the response
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
        boundaries.append(boundaries[-1] + padded)
        response_tokens.append(len(response))
        input_tokens.append(length)

    def join(pieces: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(pieces).astype(np.int64))

    return {
        "ids": [sample.get("id", "") for sample in samples],
        "tokens": join(tokens)[None],
        "position_ids": join(positions)[None],
        "cu_seqlens": torch.tensor(boundaries, dtype=torch.int32),
        "max_seqlen": torch.tensor(int(np.diff(boundaries).max())),
        "logit_positions": join(logit_positions),
        "labels": join(labels),
        "sequence_ids": join(sequence_ids),
        "response_tokens": torch.tensor(response_tokens),
        "input_tokens": torch.tensor(input_tokens),
    }
