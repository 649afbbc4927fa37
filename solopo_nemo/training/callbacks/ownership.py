"""Ends a run whose output folder another start has taken over; see :mod:`solopo_nemo.training.output_lock`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from solopo_nemo.runtime import environment
from solopo_nemo.training.output_lock import end_at_once, lock_file


class Ownership(pl.Callback):
    """Ends rank 0 after a step, before it writes the step's files, if the owner of the output folder has changed.

    Args:
        output: output folder of the run.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self._owner = self._read()

    def _read(self) -> str:
        with suppress(OSError):
            return lock_file(self.output).read_text(encoding="utf-8")
        return ""

    def on_train_batch_end(self, *_: Any) -> None:
        """Compares the owner with that of the start."""
        if environment.rank() == 0 and self._owner and self._read() not in ("", self._owner):
            end_at_once(self.output)
