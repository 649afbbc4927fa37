"""Processes of the studies: a pool of workers, and the execution of measured commands."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from solopo_nemo.runtime import environment
from solopo_nemo.runtime.errors import RunFault, UserError
from solopo_nemo.runtime.isolated import preload, run_tasks
from solopo_nemo.runtime.signals import stopping_at_once

PRELOADED = (
    "solopo_nemo.training.failures.supervise",
    "solopo_nemo.training.report.page",
    "solopo_nemo.nemo_model.convert",
    "solopo_nemo.nemo_model.models",
    "solopo_nemo.nemo_model.verify",
    "transformers.models.qwen2.modeling_qwen2",
)
"""Modules that ranks and conversions import at their start; NeMo is the slowest."""
AGAIN = "the same command goes on from here"


class MeasurementError(RunFault):
    """A measured process failed. The message contains the last line of its output."""


@dataclass(frozen=True)
class Job:
    """A job for one process.

    Attributes:
        name: display name.
        call: module-level function.
        arguments: picklable arguments of the function.
        expected: expected duration in seconds.
    """

    name: str
    call: Callable[..., Any]
    arguments: tuple[Any, ...]
    expected: float


@dataclass(frozen=True)
class Done:
    """A finished job.

    Attributes:
        value: return value of the function.
        seconds: duration in seconds.
        error: message of the failure; None after success.
    """

    value: Any
    seconds: float
    error: str | None = None


Tell = Callable[[str, Done], str]
"""Maps the name and result of a finished job to the line that is printed."""


@dataclass(frozen=True)
class Pool:
    """A pool of worker processes with one thread each.

    Attributes:
        workers: number of processes.
        logs: folder for their output.
    """

    workers: int
    logs: Path

    def run(self, stage: str, jobs: Sequence[Job], tell: Tell | None = None, until: float = math.inf) -> dict[str, Any]:
        """Run jobs in order.

        A signal ends the processes and all their children.

        Args:
            stage: description for the progress bar.
            jobs: jobs with unique names.
            tell: see :data:`Tell`; by default a line contains the name and the seconds.
            until: start no job after this time of :func:`time.monotonic`.

        Returns:
            Name -> return value of the finished jobs.

        Raises:
            RunFault: a job failed (the other jobs are finished), or a worker was killed.
        """
        os.environ["OMP_NUM_THREADS"] = "1"  # inherited by the workers and their children
        self.logs.mkdir(parents=True, exist_ok=True)
        console, values, failed = Console(stderr=True), dict[str, Any](), list[str]()
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        bar = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
        in_time = (job for job in jobs if time.monotonic() < until)
        start = partial(prepare_worker, self.logs)
        try:
            with stopping_at_once(), bar:
                task = bar.add_task(stage, total=sum(job.expected for job in jobs))
                for job, done in run_tasks(_run, in_time, self.workers, start=start, name=lambda job: job.name):
                    line = tell(job.name, done) if tell and not done.error else f"{job.name}: {done.seconds:.0f} s"
                    if done.error:
                        line = f"{job.name}: {done.error}"
                        failed.append(line)
                    else:
                        values[job.name] = done.value
                    console.print(line, style="red" if done.error else None, highlight=False, soft_wrap=True)
                    bar.advance(task, job.expected)
        except RunFault as error:
            raise RunFault(f"{error}; its output is in {self.logs}, and {AGAIN}") from None
        if failed:
            raise RunFault(f"{'; '.join(failed)}; {AGAIN}")
        return values


def prepare_worker(logs: Path) -> None:
    """Set up a worker: one thread, output to a file, and preloaded modules for fast starts of its ranks."""
    import torch

    with (logs / f"worker-{os.getpid()}.log").open("a") as log:
        for standard in (1, 2):
            os.dup2(log.fileno(), standard)
    torch.set_num_threads(1)
    preload(PRELOADED)


def _run(job: Job) -> Done:
    began, value, error = time.monotonic(), None, None
    try:
        value = job.call(*job.arguments)
    except (UserError, RunFault) as fault:
        error = str(fault)
    return Done(value, time.monotonic() - began, error)


def run_measured(command: Sequence[str], threads: int, log: Path, what: str) -> None:
    """Run a command in a new process with a given number of threads. An interruption ends its children too.

    Args:
        command: program and arguments.
        threads: OpenMP threads per process.
        log: file for its output.
        what: name of the measurement, for the message.

    Raises:
        MeasurementError: the command failed.
    """
    variables = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, env=environment.without_ranks() | variables, stdout=stream, stderr=subprocess.STDOUT
        )
        try:
            code = process.wait()
        except BaseException:  # Ctrl-C: kill the ranks; they have their own sessions and would save a checkpoint
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(process.pid).children(recursive=True):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        child.kill()
            process.kill()
            process.wait()
            raise
    if code:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        last = lines[-1] if lines else "no output"
        raise MeasurementError(f"{what} ended with code {code}: {last} (all of it: {log})")
