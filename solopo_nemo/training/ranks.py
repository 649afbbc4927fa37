"""Runs the ranks of one host under torch's elastic agent; forwards signals and returns how the ranks ended."""

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
"""Builds the error from the failed ranks: exit code (negative: the signal that killed it) and time of each."""


def start_ranks(count: int, output: Path) -> int:
    """Run this same command as the ranks of a job on this host.

    Args:
        count: of the ranks.
        output: the run's folder.

    Returns:
        0, or 75 where the ranks have saved and stopped.

    Raises:
        UserError, RunFault: why they ended.
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
        local_addr="localhost",  # the host's own name need not resolve: docker run --network none
        max_restarts=0,
        monitor_interval=0.5,
    )
    files = FaultFiles(output, start)

    def report(ended: Mapping[int, tuple[int, float]]) -> Exception:
        return job_fault(files, count, ended, lambda: memory_advice(read_config(Paths(output).config), count))

    # as it was started: a script, solopo, or python -m
    return run_ranks(launch, sys.executable, sys.orig_argv[1:], report)


def run_ranks(launch: LaunchConfig, command: str, arguments: Sequence[str], report: Report | None = None) -> int:
    """Run a command as ranks on this host and return the exit code of the job, as far as this host knows it.

    A signal goes on to the ranks, which then save and stop; a second Ctrl-C kills them.

    Args:
        launch: ``torchrun``'s settings.
        command: program.
        arguments: the program's, unharmed.
        report: raise this instead of returning 1 or 2.

    Returns:
        0; 2 where a rank ended with it; 75 where the ranks stopped on request; 1 for every other failure.
    """
    import psutil
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    for name in ("torch.distributed.elastic", "torch.distributed.launcher"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the ranks' own messages say what went wrong
    # the other signals: torch's agent would kill ranks that have not saved in 30 s
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
            # the agent takes the arguments as templates, in which $$ is a dollar sign
            elastic_launch(launch, command)(*(word.replace("$", "$$") for word in arguments))
    except ChildFailedError as error:
        ended = {rank: (failure.exitcode, float(failure.timestamp)) for rank, failure in error.failures.items()}
        for failure in error.failures.values():
            with suppress(ProcessLookupError):
                os.killpg(failure.pid, signal.SIGKILL)  # helpers of a rank that was killed itself
        codes = {code for code, _ in ended.values()}
        if EXIT_RESUMABLE in codes or (stop.received and codes == {-signal.SIGTERM}):  # before it could listen
            return EXIT_RESUMABLE
        if report is not None:
            raise report(ended) from None
        return cli.EXIT_USER_ERROR if cli.EXIT_USER_ERROR in codes else cli.EXIT_FAULT
    return EXIT_RESUMABLE if stop.received else 0
