"""Worker processes that start the parts of a run fast, with a bar, a line for every finished part, and faults last."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from solopo_nemo.runtime.errors import RunFault, UserError
from solopo_nemo.runtime.isolated import preload
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
        value: what the function gave.
        seconds: that it took.
    """

    value: Any
    seconds: float


Tell = Callable[[str, Done], str]
"""The line that is printed for a finished job, out of its name and result."""


class Pool:
    """Processes that work side by side; made by :func:`open_pool`."""

    def __init__(self, processes: Executor, workers: int, logs: Path, progress: Progress) -> None:
        self._processes, self._workers, self._logs, self._progress = processes, workers, logs, progress
        self._task = progress.add_task("", total=None)
        self._console = progress.console

    def run(self, stage: str, jobs: Sequence[Job], tell: Tell | None = None, until: float = math.inf) -> dict[str, Any]:
        """Do some jobs, in their order.

        Args:
            stage: what they are, in words.
            jobs: with names of their own.
            tell: see :data:`Tell`; without it a line is the name and the seconds.
            until: begin none after this time of :func:`time.monotonic`.

        Returns:
            What each gave, by name: all of them, unless time ran out.

        Raises:
            RunFault: some failed, and the others have been done; or a worker was killed.
        """
        total = sum(job.expected for job in jobs)
        self._progress.reset(self._task, total=total, description=stage)
        waiting, running, values, failed = list(jobs), dict[Future[Done], Job](), dict[str, Any](), list[str]()
        while True:
            while waiting and len(running) < self._workers and time.monotonic() < until:
                job = waiting.pop(0)
                running[self._processes.submit(_timed, job.call, job.arguments)] = job
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                try:
                    done = future.result()
                    values[job.name] = done.value
                    self._say(tell(job.name, done) if tell else f"{job.name}: {done.seconds:.0f} s")
                except (UserError, RunFault) as error:
                    failed.append(f"{job.name}: {error}")
                    self._say(failed[-1], style="red")
                except BrokenProcessPool:
                    raise RunFault(
                        f"{job.name}: a worker was killed, perhaps for lack of memory: run fewer side by side; its "
                        f"output is in {self._logs}, and the same command goes on from here"
                    ) from None
                self._progress.advance(self._task, job.expected)
        if failed:
            raise RunFault(f"{'; '.join(failed)}; the same command goes on from here")
        return values

    def _say(self, line: str, style: str | None = None) -> None:
        self._console.print(line, style=style, highlight=False, soft_wrap=True)


@contextmanager
def open_pool(workers: int, logs: Path) -> Iterator[Pool]:
    """Processes for :func:`studies.reproduction.runs.run_method` and whatever else is to run side by side.

    A signal ends them and everything that they started; what was under way is begun anew next time.

    Args:
        workers: processes, each with one thread.
        logs: folder for what they print.
    """
    logs.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the workers and of all that they start
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
    processes = ProcessPoolExecutor(workers, get_context("spawn"), initializer=prepare_worker, initargs=(logs,))
    with stopping_at_once(), progress, processes:
        try:
            yield Pool(processes, workers, logs, progress)
        except BaseException:
            processes.shutdown(wait=False, cancel_futures=True)
            _kill_children()
            raise


def prepare_worker(logs: Path) -> None:
    """Make this process a worker: one thread, its output in a file, and fast starts of its ranks."""
    import torch

    with (logs / f"worker-{os.getpid()}.log").open("a") as log:
        for standard in (1, 2):
            os.dup2(log.fileno(), standard)
    torch.set_num_threads(1)
    preload(PRELOADED)


def _timed(call: Callable[..., Any], arguments: tuple[Any, ...]) -> Done:
    began = time.monotonic()
    return Done(call(*arguments), time.monotonic() - began)


def _kill_children() -> None:
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
