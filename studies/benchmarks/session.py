"""A benchmark session: finished runs are read from disk, and the others are measured one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from studies.benchmarks.results import peak_gib, step_seconds
from studies.benchmarks.spec import Spec
from studies.results import Results, Run, revision

Measure = Callable[[Any], dict[str, Any]]


@dataclass
class Session:
    """One call of a benchmark.

    Attributes:
        results: results file of the runs.
        command: command line, stored with each run.
        measure: runs a specification once, in a new process.
        again: True to repeat existing runs, once per session.
    """

    results: Results
    command: str
    measure: Measure
    again: bool = False
    _done: set[tuple[str, int]] = field(default_factory=set)

    def find(self, spec: Spec, number: int = 0) -> Run | None:
        """The run of a specification in a round; None if it has not been measured."""
        runs = self.results.runs
        return next((run for run in runs if (run["key"], run["round"]) == (spec.key(), number)), None)

    def run(self, spec: Spec, number: int = 0) -> Run:
        """The run of a specification in a round. A missing run is measured and saved."""
        found, place = self.find(spec, number), (spec.key(), number)
        if found and not (self.again and place not in self._done):
            return found
        self._done.add(place)
        measured = self.measure(spec)
        run = {"key": place[0], "round": number, "command": self.command, "revision": revision(), **measured}
        self.results.runs = [*(other for other in self.results.runs if other is not found), run]
        self.results.save()
        return run

    def run_rounds(self, groups: Sequence[Sequence[Spec]], rounds: int) -> None:
        """Measure groups of specifications, interleaved by round (A B A B), so that drift affects all equally."""
        planned = [(spec, number) for group in groups for number in range(rounds) for spec in group]
        console = Console(stderr=True)
        with progress_bar(console) as progress:
            task = progress.add_task("", total=len(planned))
            for spec, number in planned:
                progress.update(task, description=spec.label())
                run = self.run(spec, number)
                progress.advance(task)
                console.print(
                    f"{spec.label()}, round {number + 1} of {rounds}: {describe(run)}", highlight=False, soft_wrap=True
                )


def progress_bar(console: Console) -> Progress:
    """A progress bar that is shown on a terminal only."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )


def describe(run: Run) -> str:
    """A short description of a run's measurements."""
    if "skipped" in run:
        return f"skipped ({run['skipped']})"
    peak = f", peak {peak_gib(run):.3f} GiB above the loaded model" if "peak_bytes" in run else ""
    return f"{step_seconds(run):.2f} s{peak}"
