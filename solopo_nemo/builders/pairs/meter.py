"""Progress of sampling: questions, throughput, acceptance rate and remaining time."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from solopo_nemo.builders.pairs.backend import Cost

_SECONDS_A_LINE = 60.0


class Meter:
    """Shows the progress on stderr: a bar on a terminal, otherwise one line per minute.

    Attributes:
        samples: Answers that this process has received.
    """

    def __init__(self, questions: int, size: int, what: str = "sampling", cost: Cost | None = None) -> None:
        """Start the clock.

        Args:
            questions: Number of all questions.
            size: Number of accepted questions to reach.
            what: Name of the work, for the line.
            cost: Its tokens are shown.
        """
        self.samples = 0
        self._what, self._cost = what, cost
        self._questions, self._size = questions, size
        self._done = self._accepted = 0
        self._started = self._printed = time.monotonic()
        # questions that an earlier process had finished; they do not count in the time estimate
        self._free = 0
        self._console = console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[status]}"))
        self._bar = Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task(what, total=self.expected(), status="")

    def __enter__(self) -> Meter:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    @property
    def acceptance(self) -> float:
        """The share of finished questions that yield a pair on every sampled side."""
        return self._accepted / self._done if self._done else 0.0

    def expected(self) -> int:
        """Return the estimated number of questions to sample, from the acceptance so far."""
        if not self._accepted:
            return self._questions
        return min(self._questions, max(self._done, round(self._size / self.acceptance)))

    def add_samples(self, count: int) -> None:
        """Add received answers to the count."""
        if not self.samples:
            self._free = self._done
        self.samples += count

    def add_question(self, accepted: bool) -> None:
        """Add a question with all its prompts sampled to the count."""
        self._done += 1
        self._accepted += accepted
        self._bar.update(self._task, completed=self._done, total=self.expected(), status=self._status())
        if not self._console.is_terminal and time.monotonic() - self._printed >= _SECONDS_A_LINE:
            self._printed = time.monotonic()
            self._console.print(f"{self._what}: {self._status()}", highlight=False, soft_wrap=True)

    def _status(self) -> str:
        parts = [
            f"{self._done}/{self.expected()} questions",
            f"{self.samples / self.seconds:.1f} samples/s",
            f"{100 * self.acceptance:.0f} % accepted",
        ]
        if self._cost and self._cost.tokens:
            parts.append(f"{self._cost.tokens / 1e6:.2f}M tokens")
        sampled = self._done - self._free
        if sampled:
            left = self.seconds / sampled * (self.expected() - self._done)
            parts.append(f"{left / 60:.0f} min left")
        return ", ".join(parts)
