"""The whole study: starting model, pairs, measurements, map; each finished part is found again by the next start."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.progress import Progress

from solopo_nemo.data.output import atomic_text
from solopo_nemo.errors import UserError
from solopo_nemo.reproduction.collapse.cells import FIRST, FREE, GAPS, HIGHER, QUESTIONS, RATES, SHORT, cells
from solopo_nemo.reproduction.collapse.measured import Replay, StartFacts, measure_start, replay
from solopo_nemo.reproduction.collapse.outcome import Outcome, run_cell
from solopo_nemo.reproduction.pairs import PairPlan, make_pairs
from solopo_nemo.reproduction.pool import make_pool
from solopo_nemo.reproduction.runs import LENGTHS
from solopo_nemo.reproduction.scoring import score_model
from solopo_nemo.reproduction.start import Start, make_start

REPLAYS = (
    ("dpo", FREE, 8), ("dpo", SHORT, 8), ("orpo", FREE, 8),
    ("dpo", FREE, 2), ("dpo", SHORT, 2), ("dpo", HIGHER, 2),
)  # fmt: skip
"""Objectives, forms and gaps whose gradients are taken apart."""

T = TypeVar("T")


@dataclass(frozen=True)
class Study:
    """Everything that the page is made of.

    Attributes:
        seeds: of the map.
        planned: cells of the whole map.
        base: right answers and questions of the starting model by context length, over the seeds.
        facts: of the starting model, by gap.
        replays: gradients taken apart.
        outcomes: of the map, as far as it has been run.
    """

    seeds: int
    planned: int
    base: dict[int, tuple[int, int]]
    facts: dict[int, StartFacts]
    replays: list[Replay]
    outcomes: list[Outcome]

    def save(self, path: Path) -> None:
        """Write it as JSON, a line an outcome."""
        head = {
            "seeds": self.seeds,
            "planned": self.planned,
            "base": self.base,
            "facts": [asdict(facts) for facts in self.facts.values()],
            "replays": [replay.as_json() for replay in self.replays],
        }
        lines = ",\n".join(json.dumps(outcome.as_json()) for outcome in self.outcomes)
        with atomic_text(path) as stream:
            stream.write(f"{json.dumps(head)[:-1]},\n" + f'"outcomes": [\n{lines}\n]}}\n')

    @classmethod
    def read(cls, path: Path) -> Study:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: there is no such file, or it is something else.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            facts = [StartFacts(**row) for row in values["facts"]]
            return cls(
                seeds=values["seeds"],
                planned=values["planned"],
                base={int(length): (right, asked) for length, (right, asked) in values["base"].items()},
                facts={row.gap: row for row in facts},
                replays=[Replay.from_json(row) for row in values["replays"]],
                outcomes=[Outcome.from_json(row) for row in values["outcomes"]],
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not the results of this study ({error})") from None


def run_study(work: Path, seeds: int, workers: int, rates: Sequence[float] = RATES, seconds: float = math.inf) -> Study:
    """Run what has not been run yet.

    Args:
        work: folder of everything that is made on the way.
        seeds: of the map.
        workers: processes, of one thread each.
        rates: learning rates of the map.
        seconds: begin no cell after so long.

    Returns:
        The study, of all cells that are there.
    """
    began, numbers = time.monotonic(), range(FIRST, FIRST + seeds)
    planned = list(cells(seeds, tuple(rates)))
    with Progress() as progress, make_pool(workers, work / "logs") as pool:
        task = progress.add_task("starting model", total=None)
        start = pool.submit(make_start, work / "start").result()
        plans = {(gap, seed): PairPlan("short", seed, long=gap) for seed in numbers for gap in GAPS}
        progress.update(task, description="pairs", total=len(plans), completed=0)
        jobs = {where: pool.submit(make_pairs, plan, start, work / "pairs") for where, plan in plans.items()}
        for _ in as_completed(jobs.values()):
            progress.advance(task)
        pairs = {where: job.result() for where, job in jobs.items()}
        facts, replays, base = _measure(pool.submit, work, start, pairs, seeds)
        progress.update(task, description="runs", total=len(planned), completed=0)
        waiting, running, outcomes = list(planned), set[Future[Outcome]](), dict[str, Outcome]()
        while waiting or running:
            late = time.monotonic() - began > seconds
            while waiting and len(running) < workers and not late:
                cell = waiting.pop(0)
                folder = work / "collapse"
                running.add(pool.submit(run_cell, cell, start, pairs[cell.gap, cell.seed], folder))
            if not running:
                break
            done = next(as_completed(running))
            running.remove(done)
            outcomes[done.result().cell.name] = done.result()
            progress.advance(task)
    ordered = [outcomes[cell.name] for cell in planned if cell.name in outcomes]
    return Study(seeds, len(planned), base, facts, replays, ordered)


def _measure(
    submit: Callable[..., Future[Any]], work: Path, start: Start, pairs: dict[tuple[int, int], Path], seeds: int
) -> tuple[dict[int, StartFacts], list[Replay], dict[int, tuple[int, int]]]:
    folder = work / "collapse" / "start"
    measured = [
        submit(_kept, folder / f"facts-{gap}x.json", measure_start, start.hf, pairs[gap, FIRST], gap) for gap in GAPS
    ]
    taken = [
        submit(
            _kept, folder / f"replay-{name}-{form}-{gap}x.json", replay, start.hf, pairs[gap, FIRST], name, form, gap
        )
        for name, form, gap in REPLAYS
    ]
    scored = [
        submit(_kept, folder / f"base-{seed}.json", _score_base, start.hf, seed) for seed in range(FIRST, FIRST + seeds)
    ]
    facts = [StartFacts(**job.result()) for job in measured]
    base = {
        length: (sum(job.result()["right"][i] for job in scored), QUESTIONS * seeds) for i, length in enumerate(LENGTHS)
    }
    return {row.gap: row for row in facts}, [Replay.from_json(job.result()) for job in taken], base


@dataclass(frozen=True)
class _Base:
    """Right answers of the starting model, by length."""

    right: list[int]


def _score_base(start: Path, seed: int) -> _Base:
    return _Base([int(score.outcomes().sum()) for score in score_model(start, LENGTHS, QUESTIONS, seed)])


def _kept(file: Path, measure: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """What a measurement gave, kept as JSON."""
    if not file.is_file():
        with atomic_text(file) as stream:
            stream.write(json.dumps(asdict(measure(*arguments))) + "\n")
    return dict(json.loads(file.read_text(encoding="utf-8")))
