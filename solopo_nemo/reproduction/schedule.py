"""Everything that an experiment needs, in its order, two trainings side by side; what is finished is not done again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from solopo_nemo.data.output import atomic_text
from solopo_nemo.errors import RunFault, UserError
from solopo_nemo.reproduction.pairs import PairPlan, make_pairs
from solopo_nemo.reproduction.pool import kill_children, make_pool
from solopo_nemo.reproduction.runs import Result, run_method, score_start
from solopo_nemo.reproduction.start import Start, make_start
from solopo_nemo.reproduction.study import Cell
from solopo_nemo.signals import stopping_at_once

START_SECONDS = 75.0
_PAIRS_SECONDS = 110.0  # of 800 pairs
TIMINGS = "timings.json"
"""Beside the runs: seconds of the starting model and of each file of pairs."""


@dataclass(frozen=True)
class Work:
    """A folder that holds the starting model, the pairs and the runs.

    Attributes:
        folder: the folder.
        cells: what is wanted.
    """

    folder: Path
    cells: Sequence[Cell]

    @property
    def start(self) -> Start:
        """The starting model."""
        return Start(self.folder / "start")

    @property
    def pairs(self) -> Path:
        """Folder of the triplets."""
        return self.folder / "pairs"

    def missing(self) -> list[Cell]:
        """The cells without a result."""
        return [cell for cell in self.cells if not cell.result(self.folder).is_file()]

    def missing_pairs(self) -> list[PairPlan]:
        """The pairs that the missing cells need and that are not there."""
        plans = dict.fromkeys(cell.pairs for cell in self.missing() if cell.pairs)
        return [plan for plan in plans if not plan.path(self.pairs).is_file()]

    def start_missing(self) -> bool:
        """Whether the starting model is still to be made."""
        return not (self.start.nemo / "weights").is_dir()

    def seconds(self) -> float:
        """What is missing takes on one idle core, about."""
        pairs = sum(_pair_seconds(plan) for plan in self.missing_pairs())
        return START_SECONDS * self.start_missing() + pairs + sum(cell.seconds for cell in self.missing())


def _pair_seconds(plan: PairPlan) -> float:
    return 15 + _PAIRS_SECONDS * plan.size / 800


@dataclass
class _Show:
    """The bar, and a line for everything that is finished."""

    progress: Progress
    console: Console
    total: float
    failed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._task = self.progress.add_task("", total=self.total)

    def stage(self, words: str) -> None:
        """Name what is under way."""
        self.progress.update(self._task, description=words)

    def finished(self, line: str, seconds: float) -> None:
        """Print what was finished and advance by what it was expected to take."""
        self.console.print(line, highlight=False, soft_wrap=True)
        self.progress.advance(self._task, seconds)


def run_all(work: Work, workers: int) -> None:
    """Make everything that is missing.

    Args:
        work: what is wanted, and where.
        workers: processes side by side, each with one thread.

    Raises:
        UserError, RunFault: something failed; the rest has been done, and the same call goes on from there.
    """
    missing = work.missing()
    if not missing:
        return
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
    with stopping_at_once(), progress, make_pool(workers, work.folder / "logs") as pool:
        show = _Show(progress, console, work.seconds())
        try:
            if work.start_missing():
                show.stage("pre-training the starting model")
                _, seconds = pool.submit(_timed, make_start, work.start.folder).result()
                _note(work.folder, "start", seconds)
                show.finished(f"starting model: {seconds:.0f} s", START_SECONDS)
            _do(pool, show, work)
        except BaseException:  # Ctrl-C: runs under way are begun anew next time
            pool.shutdown(wait=False, cancel_futures=True)
            kill_children()
            raise
    if show.failed:
        raise RunFault(f"{'; '.join(show.failed)}; the same command goes on from here")


def _do(pool: ProcessPoolExecutor, show: _Show, work: Work) -> None:
    """Sample the pairs, then train."""
    plans = work.missing_pairs()
    show.stage("sampling pairs")
    futures = {pool.submit(_timed, make_pairs, plan, work.start, work.pairs): plan for plan in plans}

    def paired(plan: PairPlan, value: Any) -> None:
        _note(work.folder, f"pairs {plan.name}", value[1])
        show.finished(f"pairs {plan.name}: {value[1]:.0f} s", _pair_seconds(plan))

    _collect(futures, paired, show, lambda plan: plan.name)
    if show.failed:
        return
    show.stage("training and scoring")
    runs: dict[Future[Any], Cell] = {}
    for cell in sorted(work.missing(), key=lambda cell: cell.study == "time"):
        folder = cell.result(work.folder).parent
        if cell.run is None or cell.pairs is None:
            runs[pool.submit(score_start, work.start, cell.seed, cell.questions, folder)] = cell
        else:
            runs[pool.submit(run_method, cell.run, work.start, cell.pairs.path(work.pairs), folder)] = cell
    done = len(work.cells) - len(runs)

    def trained(cell: Cell, result: Result) -> None:
        nonlocal done
        done += 1
        scores = " ".join(f"{score.length}x {100 * score.outcomes().mean():.1f}" for score in result.scores)
        show.finished(f"{done}/{len(work.cells)} {cell.key}: {scores} ({result.wall:.0f} s)", cell.seconds)

    _collect(runs, trained, show, lambda cell: cell.key)


def _collect(
    futures: dict[Future[Any], Any], finished: Callable[[Any, Any], None], show: _Show, name: Callable[[Any], str]
) -> None:
    for future in as_completed(futures):
        try:
            finished(futures[future], future.result())
        except (UserError, RunFault) as error:
            show.failed.append(f"{name(futures[future])}: {error}")
            show.console.print(show.failed[-1], style="red", highlight=False)


def _timed(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    began = time.monotonic()
    return function(*arguments), time.monotonic() - began


def read_timings(folder: Path) -> dict[str, float]:
    """Seconds of the starting model and of each file of pairs, as far as they have been made."""
    path = folder / TIMINGS
    return json.loads(path.read_text()) if path.is_file() else {}


def _note(folder: Path, name: str, seconds: float) -> None:
    known = read_timings(folder) | {name: round(seconds, 1)}
    with atomic_text(folder / TIMINGS) as stream:
        stream.write(json.dumps(known, indent=1) + "\n")
