"""Rank 0 prepares a run that ``torchrun`` or Slurm started; the other ranks wait until it is done, or gone.

1. Rank 0 owns the output folder; see :mod:`solopo_nemo.training.output_lock`.
2. It writes its exit code to an outcome file, whatever happens.
3. Every other rank polls the outcome. It ends with one line when rank 0 has not touched its lock for :data:`PATIENCE`.
"""

from __future__ import annotations

import logging
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
"""Seconds without a sign of life after which rank 0 counts as gone."""

logger = logging.getLogger("solopo_nemo")


class SharedPreparation:
    """The files in ``output_dir`` by which the ranks of one start share the preparation.

    Args:
        output: the run's output folder, on a file system that all ranks see.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.outcome = output / f".prepared-{environment.job_token()}"

    def prepare(self, work: Callable[[], None]) -> int:
        """Run ``work`` on rank 0 and tell the others how it ended.

        Returns:
            0; whatever ``work`` raises is raised here.
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
        return code

    def wait(self, patience: float = PATIENCE) -> int:
        """Wait on another rank for rank 0's exit code.

        Args:
            patience: seconds without a sign of life that are tolerated.

        Raises:
            RunFault: rank 0 is gone.
        """
        beat, since = None, time.monotonic()
        while not self.outcome.exists():
            with suppress(FileNotFoundError):
                touched = lock_file(self.output).stat().st_mtime_ns
                if touched != beat:  # hosts' clocks differ: only the change counts
                    beat, since = touched, time.monotonic()
            if time.monotonic() - since > patience:
                raise RunFault(
                    f"rank 0 prepares this run and has given no sign of life in {self.output} for {patience:.0f} "
                    "seconds: see its log; output_dir must lie on a file system that all nodes share"
                )
            time.sleep(0.5)
        return int(self.outcome.read_text())

    def remove_earlier(self) -> None:
        """Remove what earlier starts left."""
        for path in self.output.glob(".prepared-*"):
            path.unlink()
