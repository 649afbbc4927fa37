"""Scores each checkpoint of a run when it has been saved, and keeps the best one."""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.utilities.exceptions import SIGTERMException

from solopo_nemo.config.schema import RunConfig
from solopo_nemo.runtime import device
from solopo_nemo.runtime.errors import RunFault, UserError
from solopo_nemo.runtime.isolated import begin_isolated
from solopo_nemo.runtime.signals import StopRequest
from solopo_nemo.training.checkpoints.files import step_of
from solopo_nemo.training.checkpoints.saving import Checkpoints
from solopo_nemo.training.checkpoints.selection import (
    ScoredCheckpoint,
    best_checkpoint,
    keep_score,
    remove_others,
    score_checkpoint,
    unscored_checkpoints,
)

LOOK_EVERY = 0.5
"""Seconds between two polls of the scoring process."""

logger = logging.getLogger("solopo_nemo")


class Validation(pl.Callback):
    """Scores every checkpoint in a child process of rank 0 while all ranks wait, then removes superfluous checkpoints.

    The waiting ranks run a collective every half second, so that a lost rank or a request to stop ends the wait of all.
    The scoring process uses the free memory of rank 0's GPU. The callback comes after :class:`Checkpoints`. It works at
    any layout.

    Args:
        config: configuration of the run.
        suite: name of the suite.
        stop: request to stop; the next start scores the checkpoint again.
        checkpoints: the callback that saves the checkpoints.
    """

    def __init__(self, config: RunConfig, suite: str, stop: StopRequest, checkpoints: Checkpoints) -> None:
        self.config, self.suite, self.stop, self.checkpoints = config, suite, stop, checkpoints

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Scores the checkpoint of this step, and unscored checkpoints of earlier starts."""
        step, every = trainer.global_step, self.config.trainer.checkpoint_every
        if step % every and step != trainer.max_steps:
            return
        self.checkpoints.finish(trainer)
        waiting = [unscored_checkpoints(self.config, self.suite)]
        dist.broadcast_object_list(waiting)  # the list of rank 0, which writes the scores
        device.release_cached_memory()
        for checkpoint in waiting[0]:
            self._score(trainer, checkpoint)
        if dist.get_rank() == 0:
            remove_others(self.config, best_checkpoint(self.config, self.suite))
        dist.barrier()

    def _score(self, trainer: pl.Trainer, checkpoint: Path) -> None:
        if dist.get_rank() == 0:
            logger.info("scoring step %d by %s", step_of(checkpoint), self.suite)
        asked = (checkpoint, self.config, self.suite)
        # one GPU only: lm_eval would spread the model over all GPUs that it sees
        begun = begin_isolated(f"scoring {checkpoint}", score_checkpoint, *asked, cuda=device.name_of_current())
        with begun if dist.get_rank() == 0 else nullcontext() as future:
            while self._running(future):
                pass
            scored = _shared_result(future)
        if dist.get_rank() == 0:
            keep_score(self.config, self.suite, scored)
            for lightning_logger in trainer.loggers:
                lightning_logger.log_metrics({f"eval/{self.suite}": scored.value}, scored.step)

    def _running(self, future: Future[ScoredCheckpoint] | None) -> bool:
        """Whether rank 0 still waits for its process. A collective of all ranks.

        Raises:
            SIGTERMException: a rank was asked to stop.
        """
        running = torch.tensor(int(future is not None and not future.done()), device=device.current())
        time.sleep(LOOK_EVERY)  # a launcher that signals the processes one by one reaches this one in this time
        dist.all_reduce(running, op=dist.ReduceOp.MAX)
        if self.stop.agree():
            raise SIGTERMException
        return bool(running)


def _shared_result(future: Future[ScoredCheckpoint] | None) -> ScoredCheckpoint:
    """Returns the result of rank 0, or raises its error, on all ranks."""
    box: list[Any] = [None]
    if future is not None:
        try:
            box = [future.result()]
        except (UserError, RunFault) as error:
            box = [error]
    dist.broadcast_object_list(box)
    if isinstance(box[0], RunFault):
        box[0].everywhere = True
    if isinstance(box[0], Exception):
        raise box[0]
    return box[0]
