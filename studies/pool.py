"""Processes of the studies: a pool for jobs side by side, and a measured command with all its children."""

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
"""What a rank and a conversion import before they begin, NeMo above all."""
AGAIN = "the same command goes on from here"


class MeasurementError(RunFault):
    """A measured process ended without a result; the message has the last line of its output."""


@dataclass(frozen=True)
class Job:
    """A piece of work for one process.

    Attributes:
        name: of its line.
        call: a module's function.
        arguments: of it, picklable.
        expected: seconds that it takes, about.
    """

    name: str
    call: Callable[..., Any]
    arguments: tuple[Any, ...]
    expected: float


@dataclass(frozen=True)
class Done:
    """A finished piece of work.

    Attributes:
        value: what the function returned.
        seconds: that it took.
        error: why it failed, if it did.
    """

    value: Any
    seconds: float
    error: str | None = None


Tell = Callable[[str, Done], str]
"""The line that is printed for a finished job, out of its name and result."""


@dataclass(frozen=True)
class Pool:
    """Processes that work side by side, each with one thread.

    Attributes:
        workers: processes.
        logs: folder for what they print.
    """

    workers: int
    logs: Path

    def run(self, stage: str, jobs: Sequence[Job], tell: Tell | None = None, until: float = math.inf) -> dict[str, Any]:
        """Do some jobs, in their order.

        A signal ends the processes and everything that they started.

        Args:
            stage: what they are, in words.
            jobs: with names of their own.
            tell: see :data:`Tell`; without it a line is the name and the seconds.
            until: begin none after this time of :func:`time.monotonic`.

        Returns:
            What each returned, by name: all of them, unless time ran out.

        Raises:
            RunFault: some failed, and the others have been done; or a worker was killed.
        """
        os.environ["OMP_NUM_THREADS"] = "1"  # of the workers and of all that they start
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
    """Make this process a worker: one thread, its output in a file, and fast starts of its ranks."""
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
    """Run a command to its end in a fresh process, with stated threads; an interruption ends its children too.

    Args:
        command: program and arguments.
        threads: OpenMP threads of each process.
        log: file for what it prints.
        what: is measured, for the message.

    Raises:
        MeasurementError: it failed.
    """
    variables = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, env=environment.without_ranks() | variables, stdout=stream, stderr=subprocess.STDOUT
        )
        try:
            code = process.wait()
        except BaseException:  # Ctrl-C: the ranks have sessions of their own, and would save a checkpoint first
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
