"""Progress of a training run: a bar on a terminal, else a line every ten seconds."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

SHOWN = (("loss", "loss"), ("rewards/margin", "margin"), ("align/gap", "gap"), ("logps/chosen", "logp"))


class ProgressLine:
    """Shows the rows of :class:`solopo_nemo.training.callbacks.metrics.Metrics` on rank 0.

    Args:
        steps: number of steps of the whole run.
        console: the console to write to; by default stdout.
    """

    def __init__(self, steps: int, console: Console | None = None) -> None:
        self.console = console or Console()
        self.steps = steps
        self._last = 0.0
        times = TimeElapsedColumn(), TimeRemainingColumn()
        columns = "training", BarColumn(), MofNCompleteColumn(), *times, "{task.fields[values]}"
        self._bar = Progress(*columns, console=self.console)
        self._task = self._bar.add_task("training", total=steps, values="")

    def __call__(self, row: dict[str, Any]) -> None:
        """Shows the metrics of a step."""
        values = "  ".join(f"{name} {row[key]:.4g}" for key, name in SHOWN if key in row)
        done = row["step"] == self.steps
        if self.console.is_terminal:
            self._bar.start()
            self._bar.update(self._task, completed=row["step"], values=values)
            if done:
                self._bar.stop()
        elif done or row["step"] == 1 or time.monotonic() - self._last > 10:
            self._last = time.monotonic()
            self.console.print(f"step {row['step']}/{self.steps}  {values}", highlight=False)
