"""Tasks over several processes, which end with the one that started them, however that ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from threading import Thread
from typing import TypeVar

from solopo_nemo.runtime.errors import RunFault

T = TypeVar("T")


def run_tasks(work: Callable[[T], None], tasks: Iterable[T], workers: int) -> Iterator[None]:
    """Run tasks, and yield once for each that is done; only those at work are in memory.

    Args:
        work: Runs one task; pickled for the workers, where there are several.
        tasks: Taken one at a time.
        workers: Number of processes; 1 works in this one.

    Raises:
        Exception: What a task raised; or `RunFault`, a worker has died.
    """
    if workers == 1:
        for task in tasks:
            work(task)
            yield
        return
    # spawn: a fork would copy the locks of tokenizer and progress bar threads as they happen to be
    context = multiprocessing.get_context("spawn")
    idle: list[Connection] = []
    processes = []
    try:
        for _ in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            idle.append(ours)
        for connection in idle:
            connection.send(work)
        yield from _distribute(tasks, idle)
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _distribute(tasks: Iterable[T], idle: list[Connection]) -> Iterator[None]:
    busy: list[Connection] = []
    queue = iter(tasks)
    while True:
        while idle and (task := next(queue, None)) is not None:
            connection = idle.pop()
            connection.send(task)
            busy.append(connection)
        if not busy:
            return
        ready = wait(busy)
        for connection in [one for one in busy if one in ready]:
            try:
                error = connection.recv()
            except EOFError:
                raise RunFault("a worker process has died, perhaps for lack of memory: use fewer workers") from None
            if error is not None:
                raise error
            busy.remove(connection)
            idle.append(connection)
            yield


def _serve(connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    work = connection.recv()
    while True:
        task = connection.recv()
        try:
            work(task)
        except Exception as error:
            connection.send(error)
        else:
            connection.send(None)


def _end_with_parent() -> None:
    """End this process at once where the one that started it was killed: a new run may already write."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
