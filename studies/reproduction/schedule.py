"""Execution of the experiments in order. Finished parts are reused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from solopo_nemo.runtime.output import atomic_text
from studies.pool import Done, Job, Pool
from studies.reproduction.pairs import PairPlan, make_pairs
from studies.reproduction.runs import run_method, score_start
from studies.reproduction.start import Start, make_start
from studies.reproduction.study import Cell

_START_SECONDS = 75.0
_PAIRS_SECONDS = 110.0  # for 800 pairs
TIMINGS = "timings.json"
"""File next to the runs: seconds of the starting model and of each file of pairs."""


@dataclass(frozen=True)
class Ground:
    """The starting model and the pairs, which all runs share.

    Attributes:
        folder: folder of both.
        plans: the required pairs.
    """

    folder: Path
    plans: Sequence[PairPlan]

    @property
    def start(self) -> Start:
        """The starting model."""
        return Start(self.folder / "start")

    def pairs(self, plan: PairPlan) -> Path:
        """The path of a file of pairs."""
        return plan.path(self.folder / "pairs")

    def start_missing(self) -> bool:
        """True if the starting model does not exist yet."""
        return not (self.start.nemo / "weights").is_dir()

    def missing(self) -> list[PairPlan]:
        """The pairs that do not exist yet."""
        return [plan for plan in self.plans if not self.pairs(plan).is_file()]

    def seconds(self) -> float:
        """Estimated seconds of the missing parts on one idle core."""
        return _START_SECONDS * self.start_missing() + sum(_pair_seconds(plan) for plan in self.missing())

    def prepare(self, pool: Pool) -> None:
        """Create the missing parts.

        Raises:
            RunFault: a job failed.
        """

        def note(name: str, done: Done) -> str:
            known = read_timings(self.folder) | {name: round(done.seconds, 1)}
            with atomic_text(self.folder / TIMINGS) as stream:
                stream.write(json.dumps(known, indent=1) + "\n")
            return f"{name}: {done.seconds:.0f} s"

        if self.start_missing():
            pool.run("starting model", [Job("start", make_start, (self.start.folder,), _START_SECONDS)], note)
        jobs = [
            Job(f"pairs {plan.name}", make_pairs, (plan, self.start, self.pairs(plan).parent), _pair_seconds(plan))
            for plan in self.missing()
        ]
        pool.run("sampling pairs", jobs, note)


def _pair_seconds(plan: PairPlan) -> float:
    return 15 + _PAIRS_SECONDS * plan.size / 800


def read_timings(folder: Path) -> dict[str, float]:
    """Seconds of the starting model and of each existing file of pairs."""
    path = folder / TIMINGS
    return json.loads(path.read_text()) if path.is_file() else {}


@dataclass(frozen=True)
class Work:
    """The runs of the experiments.

    Attributes:
        folder: folder of the starting model, the pairs and the runs.
        cells: the required cells.
    """

    folder: Path
    cells: Sequence[Cell]

    def missing(self) -> list[Cell]:
        """The cells without a result."""
        return [cell for cell in self.cells if not cell.result(self.folder).is_file()]

    def ground(self) -> Ground:
        """The starting model and pairs that the missing cells need."""
        return Ground(self.folder, list(dict.fromkeys(cell.pairs for cell in self.missing() if cell.pairs)))

    def seconds(self) -> float:
        """Estimated seconds of the missing parts on one idle core."""
        return self.ground().seconds() + sum(cell.seconds for cell in self.missing())


def _job(cell: Cell, ground: Ground) -> Job:
    folder = cell.result(ground.folder).parent
    if cell.run is None or cell.pairs is None:
        return Job(cell.key, score_start, (ground.start, cell.seed, cell.questions, folder), cell.seconds)
    return Job(cell.key, run_method, (cell.run, ground.start, ground.pairs(cell.pairs), folder), cell.seconds)


def run_all(work: Work, workers: int) -> None:
    """Run everything that is missing.

    Args:
        work: the runs.
        workers: number of processes with one thread each.

    Raises:
        RunFault: a job failed. The other jobs are finished; the same call resumes from there.
    """
    missing = sorted(work.missing(), key=lambda cell: cell.study == "time")
    if not missing:
        return
    finished = len(work.cells) - len(missing)

    def tell(name: str, done: Done) -> str:
        nonlocal finished
        finished += 1
        scores = " ".join(f"{score.length}x {100 * score.outcomes().mean():.1f}" for score in done.value.scores)
        return f"{finished}/{len(work.cells)} {name}: {scores} ({done.value.wall:.0f} s)"

    ground = work.ground()
    pool = Pool(workers, work.folder / "logs")
    ground.prepare(pool)
    pool.run("training and scoring", [_job(cell, ground) for cell in missing], tell)
