"""Loss and metrics of :mod:`solopo_nemo.core.step` as NeMo's loss reduction, and the gradient norm of a loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from nemo.lightning.megatron_parallel import MegatronLossReduction

from solopo_nemo.core import device
from solopo_nemo.core.experts import without_losses
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


def gradient_norm(strategy: Any, batches: Iterator[Batch], reduction: ObjectiveReduction) -> float:
    """The L2 norm of the gradient of one global batch over all parameters, as the optimizer computes it.

    The weights do not change.

    It runs NeMo's training step and Megatron's gradient norm, so that it holds for every layout, recompute, precision
    and reference, and is the same number on every rank. The losses and loads of routers are left out. A collective of
    all ranks.

    Args:
        strategy: the strategy of the running trainer.
        batches: at least this rank's micro-batches of a global batch.
        reduction: the loss.

    Returns:
        The norm before clipping; infinite or NaN if the gradient is.
    """
    _forget_gradients(strategy)
    config = strategy.lightning_module.config
    with without_losses(config, strategy.model), strategy.precision_plugin.train_step_context():
        strategy.model.training_step(batches, loss_reduction=reduction)
    (optimizer,) = strategy.optimizers
    optimizer.mcore_optimizer.prepare_grads()
    norm = float(optimizer.mcore_optimizer.get_grad_norm())
    _forget_gradients(strategy)
    return norm


def _forget_gradients(strategy: Any) -> None:
    for chunk in strategy.model:
        chunk.zero_grad_buffer()
    for optimizer in strategy.optimizers:
        optimizer.zero_grad()
