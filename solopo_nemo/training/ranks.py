"""Runs the ranks of one host under torch's elastic agent, forwards signals to them and returns their exit code.

The agent runs in a thread. So the ranks of ``python recipes/...`` import NeMo while their starter prepares the run:

1. :func:`start_ranks` starts the ranks, and the process that converts the weights. All import NeMo at once. A run that
   seems to be trained gets its ranks only if the starter asks for them.
2. The starter checks and tokenizes. Its conversion runs in the process that has imported NeMo meanwhile.
3. The ranks wait for the outcome (:mod:`solopo_nemo.training.preparation`). They are killed if the starter refuses the
   run, and end by themselves if it is killed.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

import psutil

from solopo_nemo.config.schema import RunConfig, read_config
from solopo_nemo.config.world import check_world, local_world
from solopo_nemo.runtime import cli, environment, logs
from solopo_nemo.runtime.cli import EXIT_RESUMABLE
from solopo_nemo.runtime.isolated import WAKE_EVERY, Progress, ready, unseen
from solopo_nemo.runtime.signals import StopRequest, handled_by, held_back
from solopo_nemo.training.failures.faults import FaultFiles, job_fault
from solopo_nemo.training.paths import Paths

if TYPE_CHECKING:
    from torch.distributed.launcher.api import LaunchConfig

Report = Callable[[Mapping[int, tuple[int, float]]], Exception]
"""Builds the error from the failed ranks: exit code (negative for a signal) and end time of each."""


Wait = Callable[[], int]
"""Waits for the ranks, and returns the exit code of the job."""


def import_nemo(_: Progress = unseen) -> None:
    """Imports what a conversion needs, which is most of what a rank needs, without a look for garbage among it."""
    gc.disable()  # a sixth of the time of the import
    with logs.quiet_imports():
        from solopo_nemo.core.device import prepare_process

        prepare_process()  # before the import of NeMo, which it makes faster
        importlib.import_module("solopo_nemo.nemo_model.models")
    gc.freeze()  # later collections pass over the million objects of the libraries, which stay
    gc.enable()


@contextmanager
def start_ranks(config: RunConfig, early: bool = True) -> Iterator[Wait]:
    """Runs this process's command again as the ranks of a job on this host, which wait for the preparation.

    Args:
        config: configuration of the run.
        early: start them at once, and not when they are first waited for.

    Yields:
        The function that waits for them: 0, or 75 if they have saved and stopped. It raises a UserError or RunFault
        with the reason why they failed.
    """
    with ExitStack() as converter, ExitStack() as job:
        if not Paths(config.output).initial.exists():
            converter.enter_context(ready(import_nemo))
        from torch.distributed.launcher.api import LaunchConfig

        count, start = local_world(config), uuid.uuid4().hex
        check_world(config, count)
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
        files = FaultFiles(config.output, start)

        def report(ended: Mapping[int, tuple[int, float]]) -> Exception:
            from solopo_nemo.training.failures.memory_advice import memory_advice

            written = Paths(config.output).config
            return job_fault(files, count, ended, lambda: memory_advice(read_config(written), count))

        def begin() -> Wait:
            # the command may be a script, solopo, or python -m
            return job.enter_context(begin_ranks(launch, sys.executable, sys.orig_argv[1:], report))

        begun = begin() if early else None

        def prepared() -> int:
            converter.close()
            return (begun or begin())()

        yield prepared


@contextmanager
def begin_ranks(
    launch: LaunchConfig, command: str, arguments: Sequence[str], report: Report | None = None
) -> Iterator[Wait]:
    """Starts a command as the ranks of this host; they are killed if the block ends before they do.

    Args:
        launch: settings of ``torchrun``.
        command: the program.
        arguments: its arguments, which are passed on unchanged.
        report: builds the error to raise in place of returning 1 or 2.

    Yields:
        The function that waits for them, and returns the exit code of the job as this host knows it: 0; 2 if a rank
        exited with 2; 75 if the ranks stopped on request; 1 after any other failure. While it waits, a signal is
        forwarded to the ranks, which then save and stop. A second Ctrl-C kills them.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    for name in ("torch.distributed.elastic", "torch.distributed.launcher"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the ranks report their errors themselves
    stop = StopRequest()

    def forward(number: int, _: object) -> None:
        again = number == signal.SIGINT and stop.received
        stop.note(number, _)
        _send(signal.SIGKILL if again else signal.SIGTERM)

    def wait_for_ranks() -> int:
        try:
            with handled_by(forward, closing=True):
                while not job.done():
                    wait([job], timeout=WAKE_EVERY)
            job.result()
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

    with ThreadPoolExecutor(1) as thread:
        try:
            with held_back():
                # the agent reads arguments as templates, in which $$ is a dollar sign
                job = thread.submit(elastic_launch(launch, command), *(word.replace("$", "$$") for word in arguments))
            yield wait_for_ranks
        finally:
            with held_back():
                while not job.done():
                    _send(signal.SIGKILL)
                    wait([job], timeout=0.1)


def _send(number: int) -> None:
    """Sends a signal to all ranks: the child processes of this one that lead a session of their own."""
    for child in psutil.Process().children():
        with suppress(ProcessLookupError):
            if os.getsid(child.pid) == child.pid:
                os.kill(child.pid, number)
