"""Scores of the frozen reference policy: the two implementations of :class:`solopo_nemo.core.step.Reference`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from solopo_nemo.core import device
from solopo_nemo.core.scoring import score_batches
from solopo_nemo.core.step import Batch


class CachedReference:
    """Scores that were computed before: a table by sample id and sequence name, the same on every rank.

    Memory: one number a sample and sequence, on the host.

    Args:
        sequences: names, ``objective.reference_sequences``.
        table: log-probabilities in nats, by sample id and sequence name; may be filled later.
    """

    def __init__(self, sequences: Sequence[str], table: Mapping[str, Mapping[str, float]] | None = None) -> None:
        self.sequences, self.table = sequences, table or {}

    def scores(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        """The table's rows of this micro-batch."""
        rows = [self.table[i] for i in batch["ids"]]
        return {
            name: torch.tensor([row[name] for row in rows], dtype=torch.float32, device=device.current())
            for name in self.sequences
        }


class OnlineReference:
    """A frozen copy of the policy that scores each global batch before the policy runs on it.

    It runs in a forward-only pass of its own, so that it works under every layout, PP included.
    Memory: a second copy of the weights (divided by TP and PP), no gradients and no optimizer state.

    Args:
        sequences: names, ``objective.reference_sequences``.
        module: the frozen Megatron model of this pipeline stage; see :func:`solopo_nemo.core.scoring.frozen_copy`.
        pack: makes the reference sequences of the samples of a micro-batch.
    """

    def __init__(self, sequences: Sequence[str], module: Any, pack: Callable[[Batch], Batch]) -> None:
        self.sequences, self.module, self._pack = sequences, module, pack
        self._scores: dict[tuple[str, ...], Mapping[str, torch.Tensor]] = {}

    def score(self, batches: Sequence[Batch]) -> None:
        """Score the micro-batches of a global batch; a collective of the model's ranks."""
        results = score_batches(self.module, [self._pack(batch) for batch in batches])
        self._scores = {
            tuple(batch["ids"]): dict(zip(self.sequences, x.view(-1, len(self.sequences)).unbind(1), strict=True))
            for batch, x in zip(batches, results, strict=True)
        }

    def scores(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        """What :meth:`score` found for this micro-batch."""
        return self._scores[tuple(batch["ids"])]
