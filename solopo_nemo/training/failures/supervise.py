"""Runs the training of a rank, and reports its failures. Of all ranks one reports a failure, once."""

from __future__ import annotations

import logging

import torch.distributed as dist
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from solopo_nemo.config.schema import RunConfig
from solopo_nemo.runtime import cli, environment
from solopo_nemo.runtime.errors import RunFault
from solopo_nemo.runtime.signals import StopRequest
from solopo_nemo.training.failures.faults import OWN, Fault, FaultFiles, as_run_fault, kind_of, lost_ranks
from solopo_nemo.training.failures.memory_advice import memory_advice
from solopo_nemo.training.failures.watchdog import Watchdog
from solopo_nemo.training.fit import fit

logger = logging.getLogger("solopo_nemo.rank")


def supervised_fit(config: RunConfig, stop: StopRequest, only_reference: bool) -> int:
    """Runs :func:`solopo_nemo.training.fit.fit` on this rank.

    Args:
        config: configuration of the run.
        stop: request to stop.
        only_reference: see ``fit``.

    Returns:
        0 after the last step; 75 after a stop on request; 1 or 2 after a failure that another rank, or the process that
        started the ranks, reports.

    Raises:
        UserError, RunFault: the failure, if this rank reports it.
    """
    files = FaultFiles(config.output, environment.job_token())
    watchdog = Watchdog(config.trainer.timeout_minutes, files, stop, quiet=environment.started_here())
    try:
        fit(config, stop, only_reference, callbacks=[watchdog])
    except (Exception, CheckpointException) as error:
        return _report(error, files, watchdog.step, config)
    watchdog.stop()
    return cli.EXIT_RESUMABLE if stop.agreed else 0


def _report(error: BaseException, files: FaultFiles, step: int, config: RunConfig) -> int:
    rank = environment.rank()
    logger.error("step %d: this rank ends", step, exc_info=error)
    error = as_run_fault(error, files, lambda: memory_advice(config, environment.world_size()))
    kind = kind_of(error)
    text = " ".join(str(error).split())
    everywhere = isinstance(error, RunFault) and error.everywhere
    said = text if kind in ("user", "run") else f"{type(error).__name__}: {text}"
    fault = Fault(rank, step, kind, said, everywhere=everywhere)
    files.write(fault)
    get_error_handler().record_exception(error)  # for torchrun's summary
    # a user's error is one of all ranks, which have the same configuration and data
    if environment.started_here() or (rank and (kind == "user" or everywhere)):
        return cli.EXIT_USER_ERROR if kind == "user" else cli.EXIT_FAULT
    if kind == "lost":
        return _report_lost(files, step)
    if kind == "crash":
        files.show_last_lines(rank)
    raise fault.error()


def _report_lost(files: FaultFiles, step: int) -> int:
    """Reports a lost rank, unless that rank or another one has reported the cause."""
    world, rank = environment.world_size(), environment.rank()
    if dist.is_initialized() and dist.get_backend() == "gloo":
        dist.destroy_process_group()  # closes the connections, so that the other ranks notice too
    faults = files.roll_call(world)
    spoken = any(fault.kind in (*OWN, "hung") for fault in faults.values())
    if spoken or rank != min(faults):
        return cli.EXIT_FAULT
    gone = [other for other in range(world) if other not in faults]
    for other in gone[:3]:
        files.show_last_lines(other)
    raise RunFault(lost_ranks(gone, "ended without a report (killed, or its host is gone)", step, files))
