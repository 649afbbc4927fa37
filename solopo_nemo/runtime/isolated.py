"""Work in child processes, which end together with the process that started them, also when that is killed.

Example::

    weights = run_isolated("the import of /models/qwen", import_weights, Path("/models/qwen"))
    for shard, rows in run_tasks(count_rows, shards, workers=4):
        print(shard, rows)
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import psutil

from solopo_nemo.runtime import environment
from solopo_nemo.runtime.errors import RunFault, UserError
from solopo_nemo.runtime.signals import held_back

R = TypeVar("R")
T = TypeVar("T")
Progress = Callable[[str, int], Callable[[], None]]
"""Takes the name and the number of steps of a stage, and returns the function to call after each step."""

WAKE_EVERY = 0.5
"""Seconds; a signal that another thread receives does not wake a waiting main thread."""

_KILLED = "its process was killed, perhaps because memory ran out"
_LOOK_EVERY = 0.2  # seconds between two checks that the parent is alive
_PRINTED_BYTES = 8000  # of the output of a failed process, from its end
_preloaded = False
_ready: _Process | None = None


def unseen(stage: str, steps: int) -> Callable[[], None]:
    """A :data:`Progress` that shows nothing."""
    return lambda: None


def preload(modules: Sequence[str]) -> None:
    """Forks the processes of :func:`run_isolated` from a server that has imported ``modules``, which saves seconds.

    Call it once, before the first call of :func:`run_isolated`, and only on machines without GPU: libraries may
    initialize CUDA at import, and CUDA does not survive a fork.
    """
    global _preloaded
    _preloaded = True
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(modules))


def run_isolated(what: str, function: Callable[..., R], *arguments: Any, cuda: bool | str = True) -> R:
    """Calls ``function(progress, *arguments)`` in a new process that is no rank of this job, and returns its result.

    The output of the process is discarded; if the function crashes, the end of it is printed. Progress bars of
    ``progress`` appear on this process's terminal.

    Args:
        what: the work in words, such as "the import of /models/qwen"; for the message if the process is killed.
        function: a function at the top level of a module.
        *arguments: picklable arguments.
        cuda: whether the process sees the GPUs; a string is its ``CUDA_VISIBLE_DEVICES``.

    Raises:
        Exception: the exception of the function.
        RunFault: the process was killed.
    """
    with begin_isolated(what, function, *arguments, cuda=cuda) as future:
        while not future.done():
            wait([future], timeout=WAKE_EVERY)
        return future.result()


@contextmanager
def begin_isolated(
    what: str, function: Callable[..., R], *arguments: Any, cuda: bool | str = True
) -> Iterator[Future[R]]:
    """Starts :func:`run_isolated` and yields its future. An exception that leaves the block kills the process."""
    global _ready
    named: Future[R] = Future()

    def hand_over(done: Future[R]) -> None:
        error = done.exception()
        if isinstance(error, BrokenProcessPool):
            error = RunFault(f"{what}: {_KILLED}")
        if error is None:
            named.set_result(done.result())
        else:
            named.set_exception(error)

    with _ready if _ready and cuda is True else _Process(cuda) as process:
        _ready = None if process is _ready else _ready
        process.submit(function, *arguments).add_done_callback(hand_over)
        yield named


@contextmanager
def ready(function: Callable[[Progress], None]) -> Iterator[None]:
    """Starts a process that calls ``function``, and that the first :func:`run_isolated` in the block then uses.

    An example of ``function`` is an import that takes seconds. A process that was not used is killed with the block.
    """
    global _ready
    try:
        with held_back():
            _ready = _Process(True)
            _ready.submit(function)
        yield
    finally:
        unused, _ready = _ready, None
        if unused:
            unused.end(kill=True)


class _Process:
    """A pool of one process. The block that uses it waits for its end, and kills it after an exception."""

    def __init__(self, cuda: bool | str) -> None:
        context = multiprocessing.get_context("forkserver" if _preloaded else "spawn")
        self._pool = ProcessPoolExecutor(1, context, initializer=_leave_job, initargs=(cuda,))
        self._others = set(multiprocessing.active_children())
        self._started: set[BaseProcess] = set()

    def submit(self, function: Callable[..., R], *arguments: Any) -> Future[R]:
        with held_back():
            future = self._pool.submit(_quietly, function, *arguments)
            self._started = self._started or set(multiprocessing.active_children()) - self._others
        return future

    def end(self, kill: bool) -> None:
        for process in self._started if kill else ():
            process.kill()
        self._pool.shutdown()

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self.end(kill=error is not None)


def run_tasks(
    work: Callable[[T], R],
    tasks: Iterable[T],
    workers: int,
    *,
    start: Callable[[], None] | None = None,
    name: Callable[[T], str] = str,
) -> Iterator[tuple[T, R]]:
    """Runs tasks in worker processes (joblib's loky pool), and yields each task with its result as it finishes.

    A worker takes its next task when it has finished one, so that at most ``workers`` tasks are in memory.

    Args:
        work: runs one task; it is sent to each worker once.
        tasks: picklable tasks, which are consumed one at a time.
        workers: number of processes; with 1 and no ``start`` the tasks run in this process.
        start: called once in each worker process, before its first task.
        name: returns the name of a task, for the message if its worker is killed.

    Raises:
        Exception: the exception of a task; the other workers and their children are then killed.
        RunFault: a worker was killed.
    """
    if workers == 1 and start is None:
        for task in tasks:
            yield task, work(task)
        return
    from joblib.externals.loky import ProcessPoolExecutor as Pool

    # loky starts new interpreters: a fork would copy locks that threads of tokenizers and progress bars hold
    pool = Pool(workers, initializer=_begin_worker, initargs=(work, start))
    queue, running = iter(tasks), dict[Future[R], T]()
    try:
        while True:
            for task in islice(queue, workers - len(running)):
                running[pool.submit(_run_task, task)] = task
            if not running:
                return
            for future in wait(running, timeout=WAKE_EVERY, return_when=FIRST_COMPLETED).done:
                result = future.result()
                yield running.pop(future), result
    except BrokenProcessPool:
        raise RunFault(f"{' or '.join(map(name, running.values()))}: {_KILLED}: use fewer workers") from None
    finally:
        pool.shutdown(kill_workers=True)


_work: Callable[[Any], Any]
_start: Callable[[], None] | None


def _begin_worker(work: Callable[[Any], Any], start: Callable[[], None] | None) -> None:
    global _work, _start
    _follow_parent()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _work, _start = work, start


def _run_task(task: Any) -> Any:
    global _start
    start, _start = _start, None
    if start is not None:  # not in the initializer, whose exceptions do not reach the parent
        start()
    return _work(task)


def _follow_parent() -> None:
    """Ignores Ctrl-C, which the parent handles, and ends this process when the parent ends, also by SIGKILL."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent, above = multiprocessing.parent_process(), os.getppid()  # the direct parent may be a forkserver
    assert parent is not None and parent.pid is not None
    pid = parent.pid

    def watch() -> None:
        while os.getppid() == above and psutil.pid_exists(pid):
            time.sleep(_LOOK_EVERY)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _leave_job(cuda: bool | str) -> None:
    _follow_parent()
    kept = environment.without_ranks()
    os.environ.clear()
    os.environ.update(kept)
    if cuda is not True:
        os.environ["CUDA_VISIBLE_DEVICES"] = cuda or ""


def _quietly(function: Callable[..., R], *arguments: Any) -> R:
    """Calls the function with stdout and stderr redirected to a file; progress bars go to the terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    sys.stdout.flush()
    sys.stderr.flush()
    with os.fdopen(os.dup(2), "w") as terminal, tempfile.TemporaryFile() as printed:
        for standard in (1, 2):
            os.dup2(printed.fileno(), standard)
        console = Console(file=terminal)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        hidden = not console.is_terminal
        with Bars(*columns, console=console, disable=hidden, redirect_stdout=False, redirect_stderr=False) as bars:

            def progress(stage: str, steps: int) -> Callable[[], None]:
                task = bars.add_task(stage, total=steps)
                return lambda: bars.advance(task)

            try:
                return function(progress, *arguments)
            except UserError:
                raise
            except BaseException:
                sys.stdout.flush()
                sys.stderr.flush()
                printed.seek(max(0, printed.seek(0, os.SEEK_END) - _PRINTED_BYTES))
                os.write(terminal.fileno(), printed.read())
                raise
