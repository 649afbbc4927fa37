"""Preparation of a run: one process prepares, and the ranks wait.

1. Under ``torchrun`` or Slurm it is rank 0, else the process that the user started. It owns the output folder; see
   :mod:`solopo_nemo.training.output_lock`.
2. It writes the exit code of the preparation to an outcome file, also after an error.
3. Every other rank imports NeMo and polls the outcome file. It ends with one line if the owner has not touched its lock
   for :data:`PATIENCE` seconds, and at once if the process that started it is gone.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from solopo_nemo.runtime import cli, environment
from solopo_nemo.runtime.errors import RunFault, UserError
from solopo_nemo.runtime.output import atomic_text
from solopo_nemo.runtime.signals import Stopped, stopping_at_once
from solopo_nemo.training.output_lock import lock_file

PATIENCE = 120.0
"""Seconds without a touch of the lock after which rank 0 counts as dead."""

logger = logging.getLogger("solopo_nemo")


class SharedPreparation:
    """The outcome file in ``output_dir``, through which the ranks of one start share the preparation.

    Args:
        output: output folder of the run, on a file system that all ranks share.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.outcome = output / f".prepared-{environment.job_token()}"
        self.starter = os.getppid()

    def prepare(self, work: Callable[[], None]) -> None:
        """Runs ``work`` on rank 0, and writes its exit code for the other ranks.

        Raises:
            Exception: the exception of ``work``.
        """
        code = cli.EXIT_FAULT
        try:
            with stopping_at_once():
                work()
            code = 0
        except UserError:
            code = cli.EXIT_USER_ERROR
            raise
        except Stopped:
            code = cli.EXIT_RESUMABLE
            raise
        finally:
            if self.output.is_dir():
                with atomic_text(self.outcome) as stream:
                    stream.write(f"{code}\n")

    def wait(self, patience: float = PATIENCE) -> int:
        """Waits on another rank for the exit code of rank 0.

        Args:
            patience: seconds without a touch of the lock after which rank 0 counts as dead.

        Returns:
            That code; 1 if the process that started this rank is gone.

        Raises:
            RunFault: rank 0 counts as dead.
        """
        beat, since = None, time.monotonic()
        while not self.outcome.exists():
            if os.getppid() != self.starter:
                return cli.EXIT_FAULT
            with suppress(FileNotFoundError):
                touched = lock_file(self.output).stat().st_mtime_ns
                if touched != beat:  # only a change counts, as the clocks of hosts differ
                    beat, since = touched, time.monotonic()
            if time.monotonic() - since > patience:
                raise RunFault(
                    f"rank 0 prepares this run and has given no sign of life in {self.output} for {patience:.0f} "
                    "seconds: see its log; output_dir must lie on a file system that all nodes share"
                )
            time.sleep(0.5)  # the file system may serve many ranks
        return int(self.outcome.read_text())

    def remove_earlier(self) -> None:
        """Removes the outcome files of earlier starts."""
        for path in self.output.glob(".prepared-*"):
            path.unlink()
