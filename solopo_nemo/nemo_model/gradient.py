"""The gradient norm of a loss as the optimizer computes it, without an update of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from solopo_nemo.core.experts import without_losses
from solopo_nemo.core.step import Batch
from solopo_nemo.nemo_model.reduction import ObjectiveReduction


def gradient_norm(strategy: Any, batches: Iterator[Batch], reduction: ObjectiveReduction) -> float:
    """The L2 norm of the gradient of one global batch over all parameters. The weights do not change.

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
