"""Runs the ranks of one host under torch's elastic agent, forwards signals to them and returns their exit code."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from solopo_nemo.config.schema import read_config
from solopo_nemo.runtime import cli, environment
from solopo_nemo.runtime.cli import EXIT_RESUMABLE
from solopo_nemo.runtime.signals import StopRequest, handled_by
from solopo_nemo.training.failures.faults import FaultFiles, job_fault
from solopo_nemo.training.failures.memory_advice import memory_advice
from solopo_nemo.training.paths import Paths

if TYPE_CHECKING:
    from torch.distributed.launcher.api import LaunchConfig

Report = Callable[[Mapping[int, tuple[int, float]]], Exception]
"""Builds the error from the failed ranks: exit code (negative for a signal) and end time of each."""


def start_ranks(count: int, output: Path) -> int:
    """Runs this process's command again as the ranks of a job on this host.

    Args:
        count: number of ranks.
        output: output folder of the run.

    Returns:
        0, or 75 if the ranks have saved and stopped.

    Raises:
        UserError, RunFault: the reason why the ranks failed.
    """
    from torch.distributed.launcher.api import LaunchConfig

    start = uuid.uuid4().hex
    environment.start_here(start)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=start,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",  # the host's name may not resolve, as with docker run --network none
        max_restarts=0,
        monitor_interval=0.5,
    )
    files = FaultFiles(output, start)

    def report(ended: Mapping[int, tuple[int, float]]) -> Exception:
        return job_fault(files, count, ended, lambda: memory_advice(read_config(Paths(output).config), count))

    # the command may be a script, solopo, or python -m
    return run_ranks(launch, sys.executable, sys.orig_argv[1:], report)


def run_ranks(launch: LaunchConfig, command: str, arguments: Sequence[str], report: Report | None = None) -> int:
    """Runs a command as the ranks of this host, and returns the exit code of the job as this host knows it.

    A signal is forwarded to the ranks, which then save and stop. A second Ctrl-C kills them.

    Args:
        launch: settings of ``torchrun``.
        command: the program.
        arguments: its arguments, which are passed on unchanged.
        report: builds the error to raise in place of returning 1 or 2.

    Returns:
        0; 2 if a rank exited with 2; 75 if the ranks stopped on request; 1 after any other failure.
    """
    import psutil
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    for name in ("torch.distributed.elastic", "torch.distributed.launcher"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the ranks report their errors themselves
    # not SIGTERM and SIGINT, after which torch's agent kills ranks that have not ended in 30 s
    launch = dataclasses.replace(launch, signals_to_handle="SIGHUP,SIGQUIT")
    stop = StopRequest()

    def forward(number: int, _: object) -> None:
        again = number == signal.SIGINT and stop.received
        stop.note(number, _)
        for rank in psutil.Process().children():
            with suppress(psutil.NoSuchProcess):
                rank.send_signal(signal.SIGKILL if again else signal.SIGTERM)

    try:
        with handled_by(forward):
            # the agent reads arguments as templates, in which $$ is a dollar sign
            elastic_launch(launch, command)(*(word.replace("$", "$$") for word in arguments))
    except ChildFailedError as error:
        ended = {rank: (failure.exitcode, float(failure.timestamp)) for rank, failure in error.failures.items()}
        for failure in error.failures.values():
            with suppress(ProcessLookupError):
                os.killpg(failure.pid, signal.SIGKILL)  # child processes of a rank that was killed
        codes = {code for code, _ in ended.values()}
        # SIGTERM kills a rank that has not installed its handler yet
        if EXIT_RESUMABLE in codes or (stop.received and codes == {-signal.SIGTERM}):
            return EXIT_RESUMABLE
        if report is not None:
            raise report(ended) from None
        return cli.EXIT_USER_ERROR if cli.EXIT_USER_ERROR in codes else cli.EXIT_FAULT
    return EXIT_RESUMABLE if stop.received else 0
