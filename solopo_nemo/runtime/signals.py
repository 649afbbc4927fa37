"""Signals that stop a run: SIGTERM, SIGUSR1 (a scheduler's warning) or Ctrl-C, sent to any of its processes."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from solopo_nemo.runtime import device

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
CLOSING = (signal.SIGHUP, signal.SIGQUIT)


class Stopped(KeyboardInterrupt):
    """A signal arrived while nothing had to be saved: the files on disk are enough to resume."""


@contextmanager
def handled_by(handler: Callable[[int, Any], None], closing: bool = False) -> Iterator[None]:
    """Installs ``handler`` for the signals while the block runs, and restores the former handlers after it.

    Args:
        handler: called with the number of the signal.
        closing: also handle those of a terminal that closes or gets Ctrl-\\, unless ``nohup`` ignores them.
    """
    more = [number for number in CLOSING if closing and signal.getsignal(number) != signal.SIG_IGN]
    earlier = {number: signal.signal(number, handler) for number in (*SIGNALS, *more)}
    try:
        yield
    finally:
        for number, old in earlier.items():
            signal.signal(number, old)


@contextmanager
def held_back() -> Iterator[None]:
    """Delays the signals until the block has ended, for work that must not be interrupted.

    An example is the start of an executor's thread: an executor that is shut down joins its threads, and a thread that
    is still starting cannot be joined. Outside the main thread it does nothing, as handlers run in the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    try:
        with handled_by(lambda number, _: waiting.append(number)):
            yield
    finally:
        for number in waiting:
            signal.raise_signal(number)


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """Raises :class:`Stopped` in the block at the first signal, and ignores later ones."""
    stopped = False

    def stop(number: int, _: Any) -> None:
        nonlocal stopped
        if not stopped:  # a launcher may send several: they must not interrupt the clean-up
            stopped = True
            raise Stopped(signal.Signals(number).name)

    with handled_by(stop):
        yield


def ignore_signals() -> None:
    """Ignores the signals until the process ends: a second signal during Python's shutdown would kill it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def spare_helpers() -> None:
    """Blocks SIGUSR1 in the processes that are started after this call; this process still handles it.

    Slurm may send its warning to all processes of a job. It would end the server that Megatron's checkpoint writer
    reports to, and the run could not save any more.
    """
    # the kernel delivers the signal to this thread; Python runs the handler in the main thread
    threading.Thread(target=threading.Event().wait, name="signals", daemon=True).start()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})


class StopRequest:
    """A request to stop. A signal handler records it, and all ranks act on it at the same step.

    Attributes:
        received: True if this process received a signal.
        agreed: True if some rank received a signal and all ranks know it.
        asked_at: ``time.monotonic()`` of the last call of :meth:`agree`.
    """

    def __init__(self) -> None:
        self.received = False
        self.agreed = False
        self.asked_at = 0.0

    def note(self, number: int, _: Any) -> None:
        """The signal handler: records the request."""
        self.received = True

    def agree(self) -> bool:
        """Whether any rank has received a signal. A collective of all ranks (one all-reduce of one number)."""
        import torch
        import torch.distributed as dist

        asked = torch.tensor(int(self.received), device=device.current())
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        self.agreed = bool(asked)
        self.asked_at = time.monotonic()
        return self.agreed
