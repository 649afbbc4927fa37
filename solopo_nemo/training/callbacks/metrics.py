"""Writes ``metrics.jsonl``, feeds the loggers, and warns of a collapsing policy."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from megatron.core import parallel_state

from solopo_nemo.core.device import optimizers_of
from solopo_nemo.core.experts import take_metrics
from solopo_nemo.runtime import device
from solopo_nemo.runtime.output import atomic_text
from solopo_nemo.training.callbacks.collapse_watch import CollapseWatch
from solopo_nemo.training.report.rows import read_metrics

logger = logging.getLogger("solopo_nemo")
rank_logger = logging.getLogger("solopo_nemo.rank")


class StepValues(pl.Callback):
    """The metrics of the current step on every rank. They exist before the callbacks' ``on_before_optimizer_step``.

    Attributes:
        means: metrics of the global batch by name.
    """

    def __init__(self) -> None:
        self.means: dict[str, float] = {}

    def on_megatron_step_end(self, step: Any) -> None:
        """NeMo's event after forward and backward: takes the metrics of the last stage and of the routers.

        A collective of all ranks.
        """
        model = step.pl_module
        self.means = _from_last_stage(model.training_loss_reduction.metrics)
        self.means |= take_metrics(model.module, model.config, step.num_microbatches)


def update_skipped(pl_module: Any) -> bool:
    """Whether Megatron skipped the last update because a gradient was not finite; the same on every rank."""
    optimizer = pl_module.optimizers(use_pl_optimizer=False).mcore_optimizer
    return any(bool(part.found_inf) for part in optimizers_of(optimizer))


class Metrics(pl.Callback):
    """Writes one line for each step on rank 0, and passes it to Lightning's loggers and to ``show``.

    Args:
        path: path of ``metrics.jsonl``. Lines after the restored step are removed at the start.
        values: metrics of the step.
        count_skipped: whether to write the number of skipped updates.
        samples: number of samples of the data set, for the epoch.
        global_batch: samples of a step.
        show: called with each row on rank 0.
    """

    def __init__(
        self,
        path: Path,
        values: StepValues,
        count_skipped: bool,
        samples: int,
        global_batch: int,
        show: Callable[[dict[str, Any]], None],
    ) -> None:
        self.path, self.values, self.count_skipped = path, values, count_skipped
        self.samples, self.global_batch, self.show = samples, global_batch, show
        self._watch = CollapseWatch()
        self._started = 0.0
        self._skipped = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Removes the lines after the restored step."""
        kept = [row for row in read_metrics(self.path) if row["step"] <= trainer.global_step]
        self._skipped = next((row.get("skipped", 0) for row in reversed(kept)), 0)
        dist.barrier()  # all ranks have read the file
        if dist.get_rank() == 0:
            with atomic_text(self.path) as stream:
                stream.writelines(json.dumps(row) + "\n" for row in kept)
            for row in kept:
                self._watch.see(row)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Records the start time of the step."""
        self._started = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Writes the row of this step. Time and peak memory are the maxima of all ranks."""
        seconds = time.perf_counter() - self._started
        values = dict(self.values.means)
        self._skipped += update_skipped(pl_module)
        costs = torch.tensor([seconds, device.peak_memory_gib()], dtype=torch.float64, device=device.current())
        dist.all_reduce(costs, op=dist.ReduceOp.MAX)
        step = trainer.global_step
        rank_logger.info("step %d: loss %.6g, %.3f s", step, values["loss"], seconds)
        if dist.get_rank():
            return
        row: dict[str, Any] = {"step": step, "epoch": step * self.global_batch / self.samples}
        tokens = {key: int(values.pop(key)) for key in ("tokens", "tokens_long")}
        row |= values
        row["lr"] = self._lr
        row["grad_norm"] = float(trainer.callback_metrics.get("grad_norm", math.nan))
        row |= tokens
        if self.count_skipped:
            row["skipped"] = self._skipped
        row["seconds"], row["peak_memory_gib"] = costs.tolist()
        with self.path.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        for lightning_logger in trainer.loggers:
            lightning_logger.log_metrics({k: v for k, v in row.items() if k != "step"}, step)
        if warning := self._watch.see(row):
            logger.warning(warning)
        self.show(row)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        """Records the learning rate of this step, which the schedule changes before the step ends."""
        self._lr = float(trainer.optimizers[0].param_groups[0]["lr"])


def _from_last_stage(values: dict[str, float]) -> dict[str, float]:
    """The metrics of the last pipeline stage, on every stage."""
    if parallel_state.get_pipeline_model_parallel_world_size() == 1:
        return dict(values)
    box = [values]
    dist.broadcast_object_list(
        box,
        parallel_state.get_pipeline_model_parallel_last_rank(),
        group=parallel_state.get_pipeline_model_parallel_group(),
    )
    return dict(box[0])
