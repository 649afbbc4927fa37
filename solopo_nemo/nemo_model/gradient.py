"""The gradient norm of a loss without an update, as the optimizer would see it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from solopo_nemo.core.experts import without_losses
from solopo_nemo.core.step import Batch
from solopo_nemo.nemo_model.reduction import ObjectiveReduction


def gradient_norm(strategy: Any, batches: Iterator[Batch], reduction: ObjectiveReduction) -> float:
    """L2 norm of the gradient of one global batch, over all parameters; the weights stay as they are.

    NeMo's own step and Megatron's own norm: the same number on every rank, at any layout, whatever the recompute, the
    precision and the reference. The routers' own losses are left out. A collective of all ranks.

    Args:
        strategy: of the running trainer.
        batches: at least this rank's micro-batches of a global batch.
        reduction: the loss.

    Returns:
        The norm before clipping; infinite or NaN where the gradient is.
    """
    _forget_gradients(strategy)
    with without_losses(strategy.lightning_module.config), strategy.precision_plugin.train_step_context():
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
