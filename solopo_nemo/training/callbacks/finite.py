"""Handles a loss or gradient that is not finite: stops before the weights change, or skips the update."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch.distributed as dist

from solopo_nemo.runtime.errors import RunFault
from solopo_nemo.training.callbacks.metrics import StepValues, update_skipped
from solopo_nemo.training.checkpoints.files import last_saved

IN_A_ROW = 20
"""Number of consecutive skipped updates after which the run stops: a single batch is not the cause then."""
_SHOWN = 8

logger = logging.getLogger("solopo_nemo")


class NonFinite(pl.Callback):
    """Checks the loss terms before the optimizer's step, and Megatron's check of the gradients after it.

    Megatron skips an update whose gradients are not finite, if a ``loss_scale`` is set. After a loss that is not finite
    the gradients are set to infinity, so that Megatron skips the update. All ranks have the same reduced values and
    decide the same, at any layout.

    Args:
        skip: whether to continue with the next batch instead of ending the run.
        values: metrics of the step.
        checkpoints: folder of the checkpoints, for the message.
    """

    def __init__(self, skip: bool, values: StepValues, checkpoints: Path) -> None:
        self.skip, self.values, self.checkpoints = skip, values, checkpoints
        self._in_a_row = 0

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        """After the backward pass: ends the run, or makes Megatron skip this update."""
        terms = self._terms()
        if not terms:
            return
        bad = [i for i, loss in _samples(pl_module) if not math.isfinite(loss)]
        self._tell(trainer, ", ".join(terms), bad)
        strategy: Any = trainer.strategy
        for chunk in strategy.megatron_parallel:
            for buffer in chunk.buffers:
                buffer.grad_data.fill_(math.inf)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After the optimizer's step: counts skipped updates."""
        skipped = update_skipped(pl_module)
        if skipped and not self._terms():
            self._tell(trainer, "the gradient", [i for i, _ in _samples(pl_module)], done=1)
        self._in_a_row = self._in_a_row + 1 if skipped else 0

    def _terms(self) -> list[str]:
        means = self.values.means
        return [key for key, value in means.items() if key.startswith("loss") and not math.isfinite(value)]

    def _tell(self, trainer: pl.Trainer, what: str, ids: list[str], done: int = 0) -> None:
        step = trainer.global_step + 1 - done
        more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
        text = f"step {step}: {what} not finite; samples {', '.join(ids[:_SHOWN])}{more}"
        if self.skip and self._in_a_row < IN_A_ROW:
            if dist.get_rank() == 0:
                logger.warning("%s: skipped", text)
            return
        advice = (
            f"{IN_A_ROW} batches in a row were skipped: lower optim.lr or look at the data"
            if self.skip
            else "look at these samples or lower optim.lr; trainer.nonfinite=skip goes on without such batches"
        )
        kept = f"the weights were not changed; {last_saved(self.checkpoints)}"
        raise RunFault(f"{text}: {kept}; {advice}", everywhere=True)


def _samples(pl_module: Any) -> list[tuple[str, float]]:
    """Id and loss of each sample of the global batch, on every rank. A collective of all ranks."""
    own = [
        (i, loss)
        for ids, losses in pl_module.training_loss_reduction.samples
        for i, loss in zip(ids, losses.tolist(), strict=True)
    ]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, own)
    return sorted(dict(pair for part in gathered for pair in part).items())
