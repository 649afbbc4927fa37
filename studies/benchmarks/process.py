"""A measured process: fresh, with stated threads, and gone with all its children when the measurement ends."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psutil

from solopo_nemo.runtime import environment
from solopo_nemo.runtime.errors import RunFault


class MeasurementError(RunFault):
    """A measured process ended without a result; the message has the last line of its output."""


def run_process(command: Sequence[str], threads: int, log: Path, what: str) -> None:
    """Run a command to its end.

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
            _kill(process)
            raise
    if code:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        last = lines[-1] if lines else "no output"
        raise MeasurementError(f"{what} ended with code {code}: {last} (all of it: {log})")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and everything that it started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    process.kill()
    process.wait()
