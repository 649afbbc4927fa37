"""Scores of the frozen reference policy: the two implementations of :class:`solopo_nemo.core.step.Reference`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from solopo_nemo.core import device
from solopo_nemo.core.lora import adapters_off
from solopo_nemo.core.scoring import score_batches
from solopo_nemo.core.step import Batch

Score = float | list[float]


def by_name(sequences: Sequence[str], batch: Batch, scores: torch.Tensor) -> dict[str, torch.Tensor]:
    """Splits the scores ``[num_sequences]`` of a packed batch into one ``[P]`` for each sequence name.

    P is the number of pairs of the batch (:class:`solopo_nemo.data.packing.Batch`).
    """
    return {
        name: scores[places.to(scores.device)] for name, places in zip(sequences, batch["pairs"].unbind(1), strict=True)
    }


class CachedReference:
    """Reads the scores from a table, which is the same on every rank (``objective.reference=cached``).

    Memory: one Python float for each sample and sequence, on the host.
    TP, SP, CP, PP, DP: no communication; each rank looks up its own samples.

    Args:
        sequences: names of the sequences, ``objective.reference_sequences``.
        table: summed log-probabilities in nats, by sample id and sequence name. A sample with several rejected
            responses has a list, in their order. The table may be filled after construction.
    """

    def __init__(self, sequences: Sequence[str], table: Mapping[str, Mapping[str, Score]] | None = None) -> None:
        self.sequences, self.table = sequences, table or {}

    def scores(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        """The scores of this micro-batch, fp32 ``[P]`` by sequence name.

        Raises:
            KeyError: the table lacks a sample.
        """
        samples = batch["pair_samples"]
        places = [samples[:pair].count(sample) for pair, sample in enumerate(samples)]  # index among the sample's pairs

        def score(name: str, sample: int, place: int) -> float:
            found = self.table[batch["ids"][sample]][name]
            return found[place] if isinstance(found, list) else found

        pairs = list(zip(samples, places, strict=True))
        return {
            name: torch.tensor([score(name, *pair) for pair in pairs], dtype=torch.float32, device=device.current())
            for name in self.sequences
        }


class OnlineReference:
    """Scores each global batch before the policy does, with a frozen copy or with the policy's adapters off.

    The scores come from a separate forward-only pass, so that every layout works, PP included.

    Memory: a frozen copy holds its weights (divided by TP and PP), without gradients and optimizer state. The policy
    with its adapters off needs no memory of its own.

    Args:
        sequences: names of the sequences, ``objective.reference_sequences``.
        module: the frozen Megatron model of this pipeline stage (:func:`solopo_nemo.core.scoring.frozen_copy`), or the
            policy itself.
        pack: returns the packed reference sequences of the samples of a micro-batch.
    """

    def __init__(self, sequences: Sequence[str], module: Any, pack: Callable[[Batch], Batch]) -> None:
        self.sequences, self.module, self._pack = sequences, module, pack
        self._scores: dict[tuple[str, ...], Mapping[str, torch.Tensor]] = {}

    def score(self, batches: Sequence[Batch]) -> None:
        """Scores the micro-batches of a global batch. A collective of the TP, CP and PP ranks."""
        packed = [self._pack(batch) for batch in batches]
        with adapters_off(self.module):
            results = score_batches(self.module, packed)
        self._scores = {
            tuple(batch["ids"]): by_name(self.sequences, batch, scores)
            for batch, scores in zip(packed, results, strict=True)
        }

    def scores(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        """The scores of this micro-batch from the last :meth:`score`, fp32 ``[P]`` by sequence name."""
        return self._scores[tuple(batch["ids"])]
