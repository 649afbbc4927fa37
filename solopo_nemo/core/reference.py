"""Scores of the frozen reference policy: the two implementations of :class:`solopo_nemo.core.step.Reference`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from solopo_nemo.core import device
from solopo_nemo.core.lora import adapters_off
from solopo_nemo.core.scoring import score_batches
from solopo_nemo.core.step import Batch

Score = float | list[float]


def by_name(sequences: Sequence[str], batch: Batch, scores: torch.Tensor) -> dict[str, torch.Tensor]:
    """The scores ``[num_sequences]`` of a packed batch as ``[P]`` by sequence name."""
    return {
        name: scores[places.to(scores.device)] for name, places in zip(sequences, batch["pairs"].unbind(1), strict=True)
    }


class CachedReference:
    """Scores that were computed before: a table by sample id and sequence name, the same on every rank.

    Memory: one number a sample and sequence, on the host.

    Args:
        sequences: names, ``objective.reference_sequences``.
        table: log-probabilities in nats, by sample id and sequence name; a list for a sample with several rejected
            responses, in their order. May be filled later.
    """

    def __init__(self, sequences: Sequence[str], table: Mapping[str, Mapping[str, Score]] | None = None) -> None:
        self.sequences, self.table = sequences, table or {}

    def scores(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        """The table's rows of this micro-batch."""
        samples = batch["pair_samples"]
        places = [samples[:pair].count(sample) for pair, sample in enumerate(samples)]  # of a pair among its sample's

        def score(name: str, sample: int, place: int) -> float:
            found = self.table[batch["ids"][sample]][name]
            return found[place] if isinstance(found, list) else found

        return {
            name: torch.tensor(
                list(map(partial(score, name), samples, places)), dtype=torch.float32, device=device.current()
            )
            for name in self.sequences
        }


class OnlineReference:
    """A frozen copy of the policy, or the policy with its adapters off, scores each global batch before the policy.

    It runs in a forward-only pass of its own, so that it works under every layout, PP included.
    Memory: of a copy, its weights (divided by TP and PP), no gradients and no optimizer state; of the policy, none.

    Args:
        sequences: names, ``objective.reference_sequences``.
        module: the frozen Megatron model of this pipeline stage (:func:`solopo_nemo.core.scoring.frozen_copy`), or the
            policy's own.
        pack: makes the reference sequences of the samples of a micro-batch.
    """

    def __init__(self, sequences: Sequence[str], module: Any, pack: Callable[[Batch], Batch]) -> None:
        self.sequences, self.module, self._pack = sequences, module, pack
        self._scores: dict[tuple[str, ...], Mapping[str, torch.Tensor]] = {}

    def score(self, batches: Sequence[Batch]) -> None:
        """Score the micro-batches of a global batch; a collective of the model's ranks."""
        packed = [self._pack(batch) for batch in batches]
        with adapters_off(self.module):
            results = score_batches(self.module, packed)
        self._scores = {
            tuple(batch["ids"]): by_name(self.sequences, batch, scores)
            for batch, scores in zip(packed, results, strict=True)
        }

    def scores(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        """What :meth:`score` found for this micro-batch."""
        return self._scores[tuple(batch["ids"])]
