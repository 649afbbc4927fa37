"""The loss and the metrics of :mod:`solopo_nemo.core.step` as NeMo's loss reduction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from nemo.lightning.megatron_parallel import MegatronLossReduction

from solopo_nemo.core import device
from solopo_nemo.core.step import Batch, ForwardStep, Loss, Metrics, Reference, loss_and_metrics, reduce_metrics
from solopo_nemo.objectives import Objective


class ObjectiveReduction(MegatronLossReduction):
    """The loss and metrics of :class:`solopo_nemo.core.step.ForwardStep`, in NeMo's interface.

    Args:
        objective, reference, loss: arguments of ``ForwardStep``.

    Attributes:
        metrics: metrics of the last global batch, set by :meth:`reduce` on the last pipeline stage.
        samples: sample ids and losses fp32 ``[n]`` of each of this rank's micro-batches, set by :meth:`reduce`.
    """

    def __init__(self, objective: Objective, reference: Reference | None = None, loss: Loss | None = None) -> None:
        super().__init__()
        self.step = ForwardStep(objective, reference, loss)
        self.metrics: dict[str, float] = {}
        self.samples: list[tuple[Sequence[str], torch.Tensor]] = []
        self._samples: list[tuple[Sequence[str], torch.Tensor]] = []

    def forward(self, batch: Batch, logp: torch.Tensor) -> tuple[torch.Tensor, Metrics]:
        """The loss of one micro-batch, and the metrics that :meth:`reduce` takes.

        Args:
            batch: the micro-batch.
            logp: its scores, fp32 ``[num_sequences]`` in nats.
        """
        output = self.step.evaluate(batch, logp)
        self._samples.append((batch["ids"], output.per_sample.detach()))
        return loss_and_metrics(output, batch, self.step.objective)

    def reduce(self, losses_reduced_per_micro_batch: Sequence[Metrics]) -> torch.Tensor:
        """The mean loss over the global batch; a collective of the data-parallel ranks."""
        self.samples, self._samples = self._samples, []
        self.metrics = reduce_metrics(losses_reduced_per_micro_batch)
        return torch.tensor(self.metrics["loss"], device=device.current())
