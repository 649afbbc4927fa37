"""Everything that an experiment needs, in its order; what is finished is not done again."""

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
_PAIRS_SECONDS = 110.0  # of 800 pairs
TIMINGS = "timings.json"
"""Beside the runs: seconds of the starting model and of each file of pairs."""


@dataclass(frozen=True)
class Ground:
    """A folder that holds the starting model and the pairs, on which all runs build.

    Attributes:
        folder: the folder.
        plans: the pairs that are wanted.
    """

    folder: Path
    plans: Sequence[PairPlan]

    @property
    def start(self) -> Start:
        """The starting model."""
        return Start(self.folder / "start")

    def pairs(self, plan: PairPlan) -> Path:
        """The file of some pairs."""
        return plan.path(self.folder / "pairs")

    def start_missing(self) -> bool:
        """Whether the starting model is still to be made."""
        return not (self.start.nemo / "weights").is_dir()

    def missing(self) -> list[PairPlan]:
        """The pairs that are not there."""
        return [plan for plan in self.plans if not self.pairs(plan).is_file()]

    def seconds(self) -> float:
        """What is missing takes on one idle core, about."""
        return _START_SECONDS * self.start_missing() + sum(_pair_seconds(plan) for plan in self.missing())

    def prepare(self, pool: Pool) -> None:
        """Make what is missing.

        Raises:
            RunFault: something failed.
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
    """Seconds of the starting model and of each file of pairs, as far as they have been made."""
    path = folder / TIMINGS
    return json.loads(path.read_text()) if path.is_file() else {}


@dataclass(frozen=True)
class Work:
    """The runs of the experiments, and what they build on.

    Attributes:
        folder: of the starting model, the pairs and the runs.
        cells: what is wanted.
    """

    folder: Path
    cells: Sequence[Cell]

    def missing(self) -> list[Cell]:
        """The cells without a result."""
        return [cell for cell in self.cells if not cell.result(self.folder).is_file()]

    def ground(self) -> Ground:
        """What the missing cells build on."""
        return Ground(self.folder, list(dict.fromkeys(cell.pairs for cell in self.missing() if cell.pairs)))

    def seconds(self) -> float:
        """What is missing takes on one idle core, about."""
        return self.ground().seconds() + sum(cell.seconds for cell in self.missing())


def _job(cell: Cell, ground: Ground) -> Job:
    folder = cell.result(ground.folder).parent
    if cell.run is None or cell.pairs is None:
        return Job(cell.key, score_start, (ground.start, cell.seed, cell.questions, folder), cell.seconds)
    return Job(cell.key, run_method, (cell.run, ground.start, ground.pairs(cell.pairs), folder), cell.seconds)


def run_all(work: Work, workers: int) -> None:
    """Make everything that is missing.

    Args:
        work: what is wanted, and where.
        workers: processes side by side, each with one thread.

    Raises:
        RunFault: something failed; the rest has been done, and the same call goes on from there.
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
