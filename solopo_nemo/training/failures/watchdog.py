"""Ends a job in which a step takes too long: a hung collective, a stopped rank, a stuck file system."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
from datetime import timedelta
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch.distributed as dist
from megatron.core import parallel_state
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from solopo_nemo.runtime import cli, device, environment
from solopo_nemo.runtime.errors import RunFault
from solopo_nemo.runtime.signals import StopRequest
from solopo_nemo.training.failures.faults import Fault, FaultFiles, hung_ranks

GRACE = timedelta(minutes=2)
"""A collective may last this much longer than a step, so that the watchdogs report first."""

logger = logging.getLogger("solopo_nemo.rank")


class Watchdog(pl.Callback):
    """Ends the job if this rank completes no step within a number of minutes.

    1. The rank writes its stack to its log, and its fault to the output folder.
    2. It waits up to 15 seconds for the other ranks to do the same.
    3. It ends the process. The message names the ranks that wait for no other rank, as they are the cause.

    The process groups time out two minutes later, in case Python itself is stuck. It works at any layout, with gloo and
    NCCL.

    Args:
        minutes: limit in minutes.
        files: the files in which the ranks write their faults.
        stop: request to stop, whose agreements of all ranks count as progress.
        quiet: whether another process reports the fault.
    """

    def __init__(self, minutes: float, files: FaultFiles, stop: StopRequest, quiet: bool) -> None:
        self.limit, self.files, self.stop_request, self.quiet = 60 * minutes, files, stop, quiet
        self.step = 0
        self._main = threading.main_thread().ident
        self._last = time.monotonic()
        self._done = threading.Event()

    def beat(self) -> None:
        """Restarts the time limit."""
        self._last = time.monotonic()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Starts the watchdog's thread."""
        parallel_state.update_pg_timeout(timedelta(seconds=self.limit) + GRACE)
        self.beat()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Restarts the time limit when a step begins."""
        self.step = trainer.global_step + 1
        self.beat()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Restarts the time limit when a step has ended, as a checkpoint may follow."""
        self.beat()

    def stop(self) -> None:
        """Stops the watchdog's thread."""
        self._done.set()

    def _watch(self) -> None:
        while not self._done.wait(min(1.0, self.limit / 4)):
            if time.monotonic() - max(self._last, self.stop_request.asked_at) > self.limit:
                self._end()

    def _end(self) -> None:
        rank, frame = environment.rank(), sys._current_frames()[self._main or 0]
        logger.critical("no step ended in time; this rank is here:\n%s", "".join(traceback.format_stack(frame)))
        waits, where = where_it_is(frame)
        self.files.write(Fault(rank, self.step, "hung", where, waits))
        faults = self.files.roll_call(dist.get_world_size())
        culprits, message = hung_ranks(faults, dist.get_world_size(), self.files)
        get_error_handler().record_exception(RunFault(message))
        if not self.quiet and rank == min(faults):
            for culprit in culprits[:3]:
                self.files.show_last_lines(culprit)
            print("error:", message, file=sys.stderr, flush=True)
        os._exit(cli.EXIT_FAULT)  # the main thread may be stuck for good


READS_A_GPU = (".item(", ".tolist(", ".cpu(", ".nonzero(", "bool(", "float(", "int(")
"""Calls in which the host waits for the GPU, and so for a collective that runs on it."""


def where_it_is(frame: FrameType) -> tuple[bool, str]:
    """Whether a stack waits for other ranks, and a phrase that says where it is.

    With NCCL a collective returns at once and the GPU waits. The host then waits at the next number that it reads from
    the GPU, or in the backward pass, whose threads are not Python's.
    """
    stack = traceback.extract_stack(frame)
    for entry in stack:
        if entry.filename.endswith(("torch/distributed/distributed_c10d.py", "torch/cuda/__init__.py")):
            return True, f"waits in {entry.name}"
    entry = stack[-1]
    line = entry.line or ""
    reads = device.cuda() and (entry.name == "_engine_run_backward" or any(call in line for call in READS_A_GPU))
    waits = ".wait(" in line or reads
    return waits, f"{'waits' if waits else 'is'} in {entry.name} ({entry.filename}:{entry.lineno})"
