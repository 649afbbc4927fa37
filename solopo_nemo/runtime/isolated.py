"""A piece of work in a fresh process: outside of this job's ranks, without the libraries' chatter, with a bar."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from solopo_nemo.runtime import environment
from solopo_nemo.runtime.errors import RunFault, UserError
from solopo_nemo.runtime.signals import held_back

T = TypeVar("T")
Progress = Callable[[str, int], Callable[[], None]]
"""Starts a stage (name, number of parts) and gives what is to be called after each part."""


def unseen(stage: str, parts: int) -> Callable[[], None]:
    """The :data:`Progress` that shows nothing."""
    return lambda: None


_ready = False


def keep_ready(modules: Sequence[str]) -> None:
    """Let the processes of :func:`run_apart` be forked from one that has imported ``modules``: seconds less for each.

    For many pieces of work in a row, on machines without GPU (libraries may touch one as they are imported, and CUDA
    does not survive a fork). To be called once, before the first piece.
    """
    global _ready
    _ready = True
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(modules))


@contextmanager
def begun_apart(function: Callable[..., T], *arguments: Any, cuda: bool = True) -> Iterator[Future[T]]:
    """Call ``function(progress, *arguments)`` in a fresh process, which is killed where the block is left by an error.

    Args:
        function: of a module's top level.
        *arguments: picklable.
        cuda: whether it may see a GPU.

    Yields:
        What :func:`result_of` takes once it is done.
    """
    context = multiprocessing.get_context("forkserver" if _ready else "spawn")
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(1, context, initializer=_leave_job, initargs=(cuda,)) as pool:
        try:
            with held_back():
                future = pool.submit(_quietly, function, *arguments)
            yield future
        except BaseException:
            # leaving the pool waits for the process: when this one was told to stop, the work is not wanted any more
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
            raise


def run_apart(function: Callable[..., T], *arguments: Any, cuda: bool = True) -> T:
    """The result of :func:`begun_apart`, waited for.

    Raises:
        Exception: what the function raised.
        RunFault: its process was killed.
    """
    with begun_apart(function, *arguments, cuda=cuda) as future:
        while not future.done():
            wait([future], timeout=0.5)  # a signal that another thread takes wakes nobody
        return result_of(future)


def result_of(future: Future[T]) -> T:
    """What came of a call in another process.

    Raises:
        Exception: what the function raised.
        RunFault: its process was killed.
    """
    try:
        return future.result()
    except BrokenProcessPool:
        raise RunFault(
            "a process that was started for a piece of work was killed; memory may have run out: "
            "solopo_nemo/nemo_model/convert.py says what a conversion takes"
        ) from None


def _leave_job(cuda: bool) -> None:
    kept = environment.without_ranks()
    os.environ.clear()
    os.environ.update(kept)
    if not cuda:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def _quietly(function: Callable[..., T], *arguments: Any) -> T:
    with tempfile.TemporaryFile() as chatter, _bars(chatter.fileno()) as progress:
        try:
            return function(progress, *arguments)
        except UserError:
            raise
        except BaseException:
            chatter.seek(max(0, chatter.seek(0, os.SEEK_END) - 8000))
            os.write(progress.terminal, chatter.read())
            raise


class _Shown:
    """Bars on the terminal that this process had before its output went to a file."""

    def __init__(self, bars: Bars, terminal: int) -> None:
        self.terminal, self._bars = terminal, bars

    def __call__(self, stage: str, parts: int) -> Callable[[], None]:
        task = self._bars.add_task(stage, total=parts)
        return lambda: self._bars.advance(task)


@contextmanager
def _bars(file: int) -> Iterator[_Shown]:
    """Send file descriptors 1 and 2 to ``file`` and draw on what 2 was, where that is a terminal."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    for standard in (1, 2):
        os.dup2(file, standard)
    try:
        with os.fdopen(os.dup(saved[1]), "w") as terminal:
            console = Console(file=terminal)
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            with Bars(
                *columns,
                console=console,
                disable=not console.is_terminal,
                redirect_stdout=False,
                redirect_stderr=False,
            ) as bars:
                yield _Shown(bars, saved[1])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for standard, original in zip((1, 2), saved, strict=True):
            os.dup2(original, standard)
            os.close(original)
