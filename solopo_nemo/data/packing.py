"""Packing of several sequences into one THD micro-batch, split over context-parallel ranks.

The layout is the one that Transformer Engine's THD attention and Megatron's rotary embedding expect: each sequence is
split into ``2 * cp`` equal chunks, and rank ``r`` holds chunks ``r`` and ``2 * cp - 1 - r`` of every sequence. All
ranks then have the same causal attention work. The module needs torch only, not Megatron.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch

from solopo_nemo.data.triplets import answer_columns, sequence_columns
from solopo_nemo.data.turns import vocabulary_ids


class Batch(TypedDict):
    """One rank's share of a packed micro-batch.

    T is the number of local tokens, padding included. R is the number of local positions that predict a scored token.
    A sequence of the objective is packed once for every sample; one with a rejected response, once for each rejected
    response of the sample. P is the number of pairs of a chosen and a rejected response: the number of samples, where
    each has one rejected response. Sequences are ordered by sample.

    Attributes:
        ids: ids of the samples.
        tokens: int64 ``[1, T]``.
        position_ids: int64 ``[1, T]``; positions start at 0 in every sequence.
        cu_seqlens: int32 ``[num_sequences + 1]``, boundaries of the padded sequences over all context-parallel ranks.
        lengths: Python numbers, the lengths of the padded sequences over all context-parallel ranks: what the host asks
            of them, and what a GPU would have to be waited for.
        logit_positions: int64 ``[R]``, ascending indices into T of the positions that predict a scored token. They have
            gaps where a response has several turns.
        labels: int64 ``[R]``, the scored token that each of these positions predicts.
        sequence_ids: int64 ``[R]``, index of the sequence of each of these positions.
        response_tokens: int64 ``[num_sequences]``, scored tokens of each sequence over all context-parallel ranks.
        input_tokens: int64 ``[num_sequences]``, input tokens without padding over all context-parallel ranks.
        kinds: int64 ``[num_sequences]``, index of each sequence's name in the objective's sequences.
        pairs: int64 ``[P, len(sequences)]``, indices of the sequences of each pair.
        pair_samples: Python numbers ``[P]``, index of the sample of each pair.
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
    kinds: torch.Tensor
    pairs: torch.Tensor
    pair_samples: list[int]


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


class Plan(NamedTuple):
    """Which sequences are packed.

    Attributes:
        columns: index of the sample, column of the prompt and column of the response, of each sequence.
        kinds, pairs, pair_samples: as in `Batch`, as lists.
    """

    columns: list[tuple[int, str, str]]
    kinds: list[int]
    pairs: list[list[int]]
    pair_samples: list[int]

    @classmethod
    def of(cls, samples: Sequence[Mapping[str, Any]], sequences: Sequence[str]) -> Plan:
        """The sequences of samples; all sequences with a rejected response have equally many of a sample."""
        plan = cls([], [], [], [])
        for number, sample in enumerate(samples):
            places = []
            for kind, name in enumerate(sequences):
                prompt, response = sequence_columns()[name]
                found = answer_columns(sample, response)
                places.append(range(len(plan.columns), len(plan.columns) + len(found)))
                plan.columns.extend((number, prompt, column) for column in found)
                plan.kinds.extend([kind] * len(found))
            count = max(map(len, places))
            plan.pairs.extend([own[index % len(own)] for own in places] for index in range(count))
            plan.pair_samples.extend([number] * count)
        return plan


def pack(samples: Sequence[Mapping[str, Any]], sequences: Sequence[str], layout: Layout) -> Batch:
    """Pack the named sequences of all samples into this rank's share of one THD micro-batch.

    Labels are shifted before the split: position ``t`` predicts token ``t + 1``, even if another rank holds that token.
    The last token of a sequence is a label only, not an input.

    - DP: each rank packs its own samples.
    - TP, SP: all ranks of a group get the same batch; SP needs ``layout.multiple``.
    - CP: each rank gets its chunks; ``cu_seqlens``, ``response_tokens`` and ``input_tokens`` are equal on all ranks.
    - PP: all stages get the same batch.

    Memory per rank: 16 bytes per local token and 24 bytes per local scored token.

    Args:
        samples: tokenized samples with the columns that ``sequences`` need (lists or arrays of token ids; ``~id``, a
            negative number, is a token that is not scored).
        sequences: names of ``solopo_nemo.objectives.SEQUENCES``, in the order of the sequences of each sample.
        layout: the parallel layout of this rank.

    Raises:
        ValueError: a prompt or a response is empty, or no token of a response is scored.
    """
    tokens, positions, logit_positions, labels, sequence_ids = [], [], [], [], []
    lengths, response_tokens, input_tokens = [], [], []
    local_start = 0
    plan = Plan.of(samples, sequences)
    for number, (sample, prompt_column, column) in enumerate(plan.columns):
        prompt, response = (np.asarray(samples[sample][c], dtype=np.int64) for c in (prompt_column, column))
        if not len(prompt) or not (response >= 0).any():
            raise ValueError(
                f"sample {samples[sample].get('id')!r}: empty {prompt_column}, or nothing to score in {column}"
            )
        is_scored = np.concatenate((np.zeros(len(prompt), dtype=bool), response >= 0))
        ids = np.concatenate((prompt, vocabulary_ids(response)))
        length = len(ids) - 1
        padded = layout.padded(length)
        first, last = len(prompt) - 1, length  # positions that predict a response token
        for start, stop in local_chunks(padded, layout):
            chunk = np.full(stop - start, layout.pad_id, dtype=np.int64)
            chunk[: max(0, min(stop, length) - start)] = ids[start : max(start, min(stop, length))]
            tokens.append(chunk)
            positions.append(np.arange(start, stop))
            scored = np.arange(max(start, first), min(stop, last))
            scored = scored[is_scored[scored + 1]]
            logit_positions.append(scored - start + local_start)
            labels.append(ids[scored + 1])
            sequence_ids.append(np.full(len(scored), number))
            local_start += stop - start
        lengths.append(padded)
        response_tokens.append(int(is_scored.sum()))
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
        "kinds": torch.tensor(plan.kinds),
        "pairs": torch.tensor(plan.pairs),
        "pair_samples": plan.pair_samples,
    }
