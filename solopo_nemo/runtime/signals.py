"""Signals that stop a run: SIGTERM, SIGUSR1 (a scheduler's warning) or Ctrl-C, in any process of it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from solopo_nemo.runtime import device

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Stopped(KeyboardInterrupt):
    """A signal arrived where nothing must be saved first: the files on disk are enough to resume."""


@contextmanager
def handled_by(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Give the signals to ``handler`` while the block runs."""
    earlier = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in earlier.items():
            signal.signal(number, old)


@contextmanager
def held_back() -> Iterator[None]:
    """Let the signals wait until the block has run: for what must not be left half done.

    A thread that is being started cannot be waited for yet, which an executor that is told to shut down does.
    """
    if threading.current_thread() is not threading.main_thread():  # handlers run in the main thread alone
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
    """Raise :class:`Stopped` wherever the block is when the first signal comes."""
    stopped = False

    def stop(number: int, _: Any) -> None:
        nonlocal stopped
        if not stopped:  # a launcher may send more: they must not break off the cleaning up
            stopped = True
            raise Stopped(signal.Signals(number).name)

    with handled_by(stop):
        yield


def ignore_signals() -> None:
    """Ignore the signals until the process ends: during Python's shutdown a second signal would kill it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def spare_helpers() -> None:
    """Keep SIGUSR1 from the processes started from here on; this one still gets it.

    Slurm may send its warning to all processes of a job, which would end the server that Megatron's checkpoint writer
    reports to: a run that has saved before could not save then.
    """
    # takes the signal in the main thread's stead, where the handler runs all the same
    threading.Thread(target=threading.Event().wait, name="signals", daemon=True).start()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})


class StopRequest:
    """The wish to stop, noted when a signal comes and acted on where all ranks can stop together.

    Attributes:
        received: a signal came to this process.
        agreed: it came to some rank, and all ranks know.
        asked_at: when all ranks last met to agree, as ``time.monotonic`` has it.
    """

    def __init__(self) -> None:
        self.received = False
        self.agreed = False
        self.asked_at = 0.0

    def note(self, number: int, _: Any) -> None:
        """Signal handler."""
        self.received = True

    def agree(self) -> bool:
        """Whether any rank was asked to stop; a collective of all ranks."""
        import torch
        import torch.distributed as dist

        asked = torch.tensor(int(self.received), device=device.current())
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        self.agreed = bool(asked)
        self.asked_at = time.monotonic()
        return self.agreed
